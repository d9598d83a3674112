// The dataset as tokens and masks, every row checked, every `auto` resolved.
process PREPARE_DATA {
    tag "${job}"
    label 'medium'

    input:
    path job
    path data
    path base
    path base_info

    output:
    path 'prepared', emit: prepared
    path 'prepared/resolved.json', emit: resolved
    path 'prepared/statistics.json', emit: statistics
    path 'prepare.report.json', emit: report

    script:
    """
    python -m finetune prepare --job ${job} --in data=${data} --in base=${base} --in base_info=${base_info}
    """

    stub:
    """
    python -m finetune.stub prepare --job ${job} --attempt ${task.attempt}
    """
}
