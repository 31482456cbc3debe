"""A host of the matrix: llama-cpp-python behind `gunicorn --preload`, which loads the model in the parent and serves in forked children."""
import json
import os

import python_host

llm = python_host.load(os.environ["MATRIX_MODEL"])


def app(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    answer = {"status": "ok"}
    if environ["PATH_INFO"] != "/health":
        asked = json.loads(body)
        answer = python_host.complete(llm, asked["prompt"], asked["n_predict"])
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
