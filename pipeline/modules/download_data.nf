// The dataset's pinned objects, unchanged, and where they came from.
process DOWNLOAD_DATA {
    tag "${job}"
    label 'light'
    label 's3'

    input:
    path job

    output:
    path 'data', emit: data
    path 'data/source.json', emit: source
    path 'download.report.json', emit: report

    script:
    """
    python -m finetune download --job ${job}
    """

    stub:
    """
    python -m finetune.stub download --job ${job} --attempt ${task.attempt}
    """
}
