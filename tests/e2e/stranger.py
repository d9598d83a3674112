"""A process that knows nothing of LlamaFlow: loads an adapter from its S3 prefix with boto3, transformers and peft alone.

usage: stranger.py ENDPOINT ACCESS_KEY SECRET_KEY JOB CACHE. Checks every sha256 of the manifest, asks every second exam
question greedily, prints the share answered right. The base is found in CACHE by the revision the manifest names.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import boto3
import torch
from botocore.config import Config
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

endpoint, access, secret, job, cache = sys.argv[1:]
s3 = boto3.client(
    "s3",
    endpoint_url=endpoint,
    aws_access_key_id=access,
    aws_secret_access_key=secret,
    region_name="us-east-1",
    config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
)
prefix = f"model/{job}/"
manifest = json.loads(s3.get_object(Bucket="llamaflow-data", Key=prefix + "manifest.json")["Body"].read())
folder = Path(tempfile.mkdtemp())
for file in manifest["files"]:
    body = s3.get_object(Bucket="llamaflow-data", Key=prefix + file["path"])["Body"].read()
    assert hashlib.sha256(body).hexdigest() == file["sha256"], file["path"]
    if file["path"].startswith("adapter/"):
        (folder / Path(file["path"]).name).write_bytes(body)

base = Path(cache) / "models" / manifest["base"]["revision"]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(folder)).eval()

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from app.demo import dataset  # noqa: E402 - the questions only

right = 0
questions = dataset.exam()[::2]
for question in questions:
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": question.text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        answer = model.generate(**ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
    right += question.right(tokenizer.decode(answer[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
print(right / len(questions))
