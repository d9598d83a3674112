// A life by the Node client, unmodified. Says "lived" at its end; an assertion that fails ends it with 1.
// usage: node life.mjs URL KEY SECRET CALLBACK_PORT, in a folder whose node_modules has openai

import assert from 'node:assert/strict';
import http from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const { default: OpenAI, toFile, NotFoundError } = await import(
  pathToFileURL(createRequire(process.cwd() + '/').resolve('openai')).href
);
const [url, apiKey, webhookSecret, port] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url, apiKey, webhookSecret });
const model = 'HuggingFaceTB/SmolLM2-135M-Instruct';
const messages = [{ role: 'user', content: 'one two three' }];
const rows = Array.from({ length: 12 }, (_, n) =>
  JSON.stringify({ messages: [{ role: 'user', content: `Q${n}` }, { role: 'assistant', content: `A${n}` }] }) + '\n',
).join('');
const all = async (list) => {
  const found = [];
  for await (const each of list) found.push(each);
  return found;
};
const until = async (id, ...statuses) => {
  for (let tries = 0; tries < 1200; tries++) {
    const found = await client.fineTuning.jobs.retrieve(id);
    if (statuses.includes(found.status)) return found;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  throw new Error(`${id} did not get so far`);
};
const told = new Promise((resolve, reject) => {
  http
    .createServer(async (request, response) => {
      let body = '';
      for await (const piece of request) body += piece;
      try {
        resolve(await client.webhooks.unwrap(body, request.headers));
        response.writeHead(204).end();
      } catch (problem) {
        response.writeHead(400).end();
        reject(problem);
      }
    })
    .listen(Number(port), '127.0.0.1')
    .unref();
});

const file = await client.files.create({ file: await toFile(Buffer.from(rows), 'train.jsonl'), purpose: 'fine-tune' });
assert.equal((await client.files.waitForProcessing(file.id, { pollInterval: 200 })).status, 'processed');
assert.equal(await (await client.files.content(file.id)).text(), rows);
const upload = await client.uploads.create({
  filename: 'parts.jsonl', bytes: rows.length, mime_type: 'application/jsonl', purpose: 'fine-tune',
});
const parts = [];
for (const at of [0, 400]) {
  const data = await toFile(Buffer.from(rows.slice(at, at ? undefined : 400)), 'part');
  parts.push((await client.uploads.parts.create(upload.id, { data })).id);
}
const whole = await client.uploads.complete(upload.id, { part_ids: parts });
assert.equal(await (await client.files.content(whole.file.id)).text(), rows);
assert.equal((await all(client.files.list({ limit: 1 }))).length, 2);

const method = { type: 'supervised', supervised: { hyperparameters: { n_epochs: 'auto', batch_size: 'auto' } } };
const job = await client.fineTuning.jobs.create({
  model, training_file: file.id, suffix: 'kpi', seed: 7, metadata: { team: 'node' }, method,
  callback_url: `http://127.0.0.1:${port}/callback`,
});
assert.equal(job.status, 'validating_files');
const other = await client.fineTuning.jobs.create({ model, training_file: file.id, method });
await client.fineTuning.jobs.pause(other.id);
await until(other.id, 'paused');
assert.notEqual((await client.fineTuning.jobs.resume(other.id)).status, 'paused');
await client.fineTuning.jobs.cancel(other.id);
assert.deepEqual((await all(client.fineTuning.jobs.list({ limit: 1 }))).map((each) => each.id), [other.id, job.id]);
assert.deepEqual(
  (await all(client.fineTuning.jobs.list({ metadata: { team: 'node' } }))).map((each) => each.id), [job.id],
);

const found = await until(job.id, 'succeeded', 'failed', 'cancelled');
assert.equal(found.status, 'succeeded');
const events = await all(client.fineTuning.jobs.listEvents(job.id, { limit: 3 }));
assert.equal(events[0].message, 'The job has successfully completed');
assert.equal(events.at(-1).message, `Created fine-tuning job: ${job.id}`);
const checkpoints = await all(client.fineTuning.jobs.checkpoints.list(job.id, { limit: 1 }));
assert.deepEqual(checkpoints.map((each) => each.step_number), [10, 5]);
assert.match(await (await client.files.content(found.result_files[0])).text(), /^step,train_loss,train_accuracy/);
const event = await told;
assert.deepEqual([event.type, event.data.id], ['fine_tuning.job.succeeded', job.id]);

const tuned = found.fine_tuned_model;
assert.equal((await client.models.retrieve(tuned)).id, tuned);
assert.ok((await all(client.models.list())).some((each) => each.id === tuned));
for (const name of [tuned, checkpoints[0].fine_tuned_model_checkpoint, model]) {
  const chat = await client.chat.completions.create({ model: name, messages });
  assert.equal(chat.choices[0].message.content, 'one two three');
  const pieces = await all(await client.chat.completions.create({ model: name, messages, stream: true }));
  assert.deepEqual(pieces.slice(1, -1).map((each) => each.choices[0].delta.content), ['one', 'two', 'three']);
  const helper = await client.chat.completions.stream({ model: name, messages }).finalContent();
  assert.equal(helper, 'onetwothree');
  assert.equal((await client.completions.create({ model: name, prompt: 'one two' })).choices[0].text, 'one two');
  const streamed = await all(await client.completions.create({ model: name, prompt: 'one two', stream: true }));
  assert.equal(streamed.map((each) => each.choices[0].text).join(''), 'onetwo');
  const response = await client.responses.create({ model: name, input: 'one two' });
  assert.equal(response.output_text, 'one two');
  const following = client.responses.stream({ model: name, input: 'and on', previous_response_id: response.id });
  assert.equal((await following.finalResponse()).output_text, 'andon');
  await client.responses.delete(response.id);
}
const raw = await client.models.retrieve(tuned).withResponse();
assert.match(raw.response.headers.get('x-request-id'), /^req_/);
assert.equal(raw.data.id, tuned);
const endpoint = await client.webhooks.create({
  name: 'n8n', url: `http://127.0.0.1:${port}/`, event_types: ['fine_tuning.job.failed'],
});
assert.match(endpoint.signing_secret, /^whsec_/);
assert.equal((await client.webhooks.delete(endpoint.id)).deleted, true);
assert.equal((await client.models.delete(tuned, { query: { force: true } })).deleted, true);
await assert.rejects(client.models.retrieve(tuned), (problem) => {
  assert.ok(problem instanceof NotFoundError);
  assert.deepEqual([problem.code, problem.type], ['model_not_found', 'not_found_error']);
  return true;
});
for (const each of [file.id, whole.file.id]) assert.equal((await client.files.delete(each)).deleted, true);
console.log('lived');
process.exit(0);
