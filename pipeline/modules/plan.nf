// Runs by hand only: the parameters become step files. Also looks at the dataset's objects and pins them.
process PLAN {
    tag "${params_file}"
    label 'light'

    input:
    path params_file

    output:
    path 'steps', emit: steps
    path 'plan.report.json', emit: report

    script:
    """
    python -m finetune plan --params ${params_file}
    """

    stub:
    """
    python -m finetune.stub plan --job ${params_file}
    """
}
