// The result to S3, its manifest last. model_s3.txt, which says where it lies, is published in the launch folder.
process UPLOAD_MODEL {
    tag "${job}"
    label 'light'
    label 's3'

    input:
    path job
    path source
    path base_info
    path resolved
    path statistics
    path adapter
    path result
    path metrics
    path evaluation
    path exported

    output:
    path 'model_s3.txt', emit: model_s3
    path 'manifest.json', emit: manifest
    path 'upload.report.json', emit: report

    script:
    """
    python -m finetune upload --job ${job} --in source=${source} --in base_info=${base_info} --in resolved=${resolved} \\
        --in adapter=${adapter} --in result=${result} --in metrics=${metrics} --in evaluation=${evaluation} \\
        --in statistics=${statistics} ${exported ? "--in exported=${exported}" : ''}
    """

    stub:
    """
    python -m finetune.stub upload --job ${job} --attempt ${task.attempt} \\
        --in source=${source} --in base_info=${base_info} --in resolved=${resolved} \\
        --in adapter=${adapter} --in result=${result} --in metrics=${metrics} --in evaluation=${evaluation} \\
        --in statistics=${statistics} ${exported ? "--in exported=${exported}" : ''}
    """
}
