// The base model at one exact revision, in the cache; the only step that reaches a hub.
process FETCH_MODEL {
    tag "${job}"
    label 'light'
    label 's3'

    input:
    path job

    output:
    path 'base', emit: base
    path 'base.json', emit: info
    path 'parent', emit: parent
    path 'compared', emit: compared
    path 'fetch.report.json', emit: report

    script:
    """
    python -m finetune fetch --job ${job}
    """

    stub:
    """
    python -m finetune.stub fetch --job ${job} --attempt ${task.attempt}
    """
}
