"""What happened to a job: recorded in the transaction of the fact, read by everybody else."""
