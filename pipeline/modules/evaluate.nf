// Base, adapter and, for a gate, the promoted version on the held-out rows.
process EVALUATE {
    tag "${job}"
    label 'heavy'
    label 'gpu'

    input:
    path job
    path prepared
    path base
    path base_info
    path adapter
    path compared

    output:
    path 'evaluation.json', emit: evaluation
    path 'evaluate.report.json', emit: report

    script:
    """
    python -m finetune evaluate --job ${job} --in prepared=${prepared} --in base=${base} \\
        --in base_info=${base_info} --in adapter=${adapter} --in compared=${compared}
    """

    stub:
    """
    python -m finetune.stub evaluate --job ${job} --attempt ${task.attempt}
    """
}
