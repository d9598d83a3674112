"""What a job will take, before it runs: rows, tokens, steps, memory, time and cost, each as a range.

Samples at most 2,000 rows; reckons with what earlier runs measured where there are any, else by the rules written in
`memory.py` and `speed.py`. No torch: the service imports this.
"""
