"""Hosts of the matrix: whisper.cpp through pywhispercpp, alone or before llama.cpp in the same process.

    whisper_host.py WHISPER_MODEL                    whisper alone
    whisper_host.py WHISPER_MODEL MODEL TOKENS       whisper, then llama-cpp-python with libraries of its own, then whisper again

Each prints one JSON object. The two are built with different versions of ggml, and each brings its own.
"""
import json
import sys

import numpy as np
from pywhispercpp.model import Model


def heard(model):
    audio = np.sin(np.arange(16000, dtype=np.float32) * 0.06) * 0.1  # a second of a tone
    segments = model.transcribe(audio, language="en", single_segment=True, no_timestamps=True, max_tokens=12, temperature_inc=0.0)
    return [s.text for s in segments]


def main(whisper, *llama):
    model = Model(whisper, n_threads=2, print_progress=False, print_realtime=False)
    answer = {"requests": [], "heard": heard(model)}
    if llama:
        from python_host import requests  # loads llama.cpp's libraries, the second copy
        answer["requests"] = requests(llama[0], int(llama[1]))
        answer["heard again"] = heard(model)
    print(json.dumps(answer))


main(*sys.argv[1:])
