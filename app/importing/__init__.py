"""The way over from OpenAI: its files, jobs and events brought here as a read-only history, and jobs recreated on open bases.

The command line (bring.py, recreate.py) reads OpenAI with the user's own key, which is never sent to the service, and writes
through the service's API; the history lies in two tables (service.py) behind /v1/imports. An imported job is no job of the
queue: nothing here changes its status.
"""
