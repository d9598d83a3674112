// The adapter folded into its base, as a model folder or a GGUF file. Runs only where export.json is among the step files.
process EXPORT_MODEL {
    tag "${job}"
    label 'heavy'

    input:
    path job
    path prepared
    path base
    path adapter

    output:
    path 'exported', emit: exported
    path 'export.report.json', emit: report

    script:
    """
    python -m finetune export --job ${job} --in prepared=${prepared} --in base=${base} --in adapter=${adapter}
    """

    stub:
    """
    python -m finetune.stub export --job ${job} --attempt ${task.attempt}
    """
}
