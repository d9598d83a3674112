"""From a dataset's bytes to tokens and masks: reading → formats → template, masks, encode → arrays. No torch in here.

`formats` and `reading` need nothing but pydantic: the service checks datasets with them.
"""
