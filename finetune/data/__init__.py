"""From a dataset's bytes to tokens and masks: reading → formats → template, masks, encode → shards → intake → arrays. No torch in here.

A file's rows are tokenised by themselves and kept (`shards`, `parallel`, `sealed`); a dataset is put together from its files
under a job's limits (`intake`, `repeats`, `statistics`). `formats` and `reading` need nothing but pydantic: the service checks
datasets with them.
"""
