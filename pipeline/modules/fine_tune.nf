// The training. Its state lies in the job's train/ folder, so that starting it twice trains once.
process FINE_TUNE {
    tag "${job}"
    label 'heavy'
    label 'gpu'

    input:
    path job
    path prepared
    path base
    path base_info

    output:
    path 'adapter', emit: adapter
    path 'result.json', emit: result
    path 'metrics.csv', emit: metrics
    path 'train.report.json', emit: report

    script:
    """
    python -m finetune train --job ${job} --in prepared=${prepared} --in base=${base} --in base_info=${base_info}
    """

    stub:
    """
    python -m finetune.stub train --job ${job} --attempt ${task.attempt}
    """
}
