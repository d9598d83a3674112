// The training. Its state lies in the job's train/ folder, so that starting it twice trains once; where no disk is shared,
// `access` says how the service is reached that keeps it (an empty list elsewhere).
process FINE_TUNE {
    tag "${job}"
    label 'heavy'
    label 'gpu'

    input:
    path job
    path prepared
    path base
    path base_info
    path parent
    path access

    output:
    path '{adapter,model}', emit: adapter
    path 'result.json', emit: result
    path 'metrics.csv', emit: metrics
    path 'train.report.json', emit: report

    script:
    """
    python -m finetune train --job ${job} --in prepared=${prepared} --in base=${base} --in base_info=${base_info} \\
        --in parent=${parent} ${access ? "--in access=${access}" : ''}
    """

    stub:
    """
    python -m finetune.stub train --job ${job} --attempt ${task.attempt} ${access ? "--in access=${access}" : ''}
    """
}
