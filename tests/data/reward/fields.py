"""fields.py [PAD] - a reward command of the tests: 1 when the request is, byte for byte, what
test_reward_command.c submitted; PAD: bytes of an extra key in each reply."""
import json
import sys

pad = "x" * int(sys.argv[1]) if len(sys.argv) > 1 else None
every_byte = bytes(range(256)).decode("utf-8", "replace")
for line in sys.stdin.buffer:
    d = json.loads(line.decode("utf-8"))
    if pad:
        reply = {"id": d["id"], "pad": pad, "score": float(d["ground_truth"])}
    else:
        good = (
            d["solution_str"] == every_byte
            and d["data_source"] == 'my "task"'
            and d["ground_truth"] == "4\n2"
            and d["extra_info"] == {"index": 7, "list": [1, 2]}
            and list(d) == ["id", "data_source", "solution_str", "ground_truth", "extra_info"]
        )
        reply = {"id": d["id"], "score": float(good)}
    print(json.dumps(reply), flush=True)
