"""What a log tells of what was said: nothing, unless it is asked to."""

import pytest

from server import Server, read_log

# Words that stand in no name of a tensor, a file or an event.
PROMPT = "xylophone quixotic zephyr xylophone"


@pytest.mark.parametrize("asked", [False, True])
def test_a_log_says_what_was_said_only_if_it_is_asked_to(tiny_model, tmp_path, asked):
    log = tmp_path / "log.jsonl"
    env = {"LLAMA_RESOURCE_LOG_TEXT": "1"} if asked else {}
    with Server(tiny_model("llama"), args=["-c", "256"], level="VERBOSE", log_path=log,
                env={"LLAMA_RESOURCE_LOG_RATE": "unlimited", **env}) as server:
        server.post("/completion", {"prompt": PROMPT, "n_predict": 6, "ignore_eos": True})
        server.stop()
    tokens = [event["token_id"] for event in read_log(log) if event["event"] == "request_token"]
    assert len(tokens) == 6 and all((token is not None) == asked for token in tokens), tokens
    text = log.read_text()
    assert not any(word in text for word in PROMPT.split()), "the log has no texts, asked or not"
