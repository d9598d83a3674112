"""Nextflow as a program: installing it, its command line, its process, what it leaves behind. Knows no jobs and no database."""
