// From a dataset on S3 to a LoRA adapter, or a whole model, on S3. Each process calls one `python -m finetune <step>`.
//
// --access FILE how the training reaches the service, where it shares no disk with it; the service's own.
// --steps DIR   step files, as the service writes them. Without it, PLAN makes them from the other
//               parameters (docs/pipeline.md), which reach it as a JSON file, never as text in a script.
nextflow.enable.dsl = 2

include { PLAN } from './modules/plan'
include { DOWNLOAD_DATA } from './modules/download_data'
include { FETCH_MODEL } from './modules/fetch_model'
include { PREPARE_DATA } from './modules/prepare_data'
include { FINE_TUNE } from './modules/fine_tune'
include { EVALUATE } from './modules/evaluate'
include { EXPORT_MODEL } from './modules/export_model'
include { UPLOAD_MODEL } from './modules/upload_model'

workflow {
    def steps = null
    if (params.steps) {
        steps = channel.value(file(params.steps, type: 'dir', checkIfExists: true))
    }
    else {
        def run = [
            params: params,
            session: workflow.sessionId.toString(),
            launch_dir: workflow.launchDir.toString(),
            state_dir: "${workflow.workDir}/state",
        ]
        PLAN(channel.of(groovy.json.JsonOutput.toJson(run)).collectFile(name: 'params.json'))
        steps = PLAN.out.steps
    }

    DOWNLOAD_DATA(steps.map { dir -> dir.resolve('download.json') })
    FETCH_MODEL(steps.map { dir -> dir.resolve('fetch.json') })
    PREPARE_DATA(
        steps.map { dir -> dir.resolve('prepare.json') },
        DOWNLOAD_DATA.out.data,
        FETCH_MODEL.out.base,
        FETCH_MODEL.out.info,
    )
    FINE_TUNE(
        steps.map { dir -> dir.resolve('train.json') },
        PREPARE_DATA.out.prepared,
        FETCH_MODEL.out.base,
        FETCH_MODEL.out.info,
        FETCH_MODEL.out.parent,
        params.access ? channel.value(file(params.access, checkIfExists: true)) : [],
    )
    EVALUATE(
        steps.map { dir -> dir.resolve('evaluate.json') },
        PREPARE_DATA.out.prepared,
        FETCH_MODEL.out.base,
        FETCH_MODEL.out.info,
        FINE_TUNE.out.adapter,
        FETCH_MODEL.out.compared,
    )
    EXPORT_MODEL(
        steps.map { dir -> dir.resolve('export.json') }.filter { job -> job.exists() },
        PREPARE_DATA.out.prepared,
        FETCH_MODEL.out.base,
        FINE_TUNE.out.adapter,
    )
    UPLOAD_MODEL(
        steps.map { dir -> dir.resolve('upload.json') },
        DOWNLOAD_DATA.out.source,
        FETCH_MODEL.out.info,
        PREPARE_DATA.out.resolved,
        PREPARE_DATA.out.statistics,
        FINE_TUNE.out.adapter,
        FINE_TUNE.out.result,
        FINE_TUNE.out.metrics,
        EVALUATE.out.evaluation,
        EXPORT_MODEL.out.exported.ifEmpty([]),
    )
}
