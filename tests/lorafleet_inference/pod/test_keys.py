"""A real pod that asks for keys."""

import json
import time
from pathlib import Path

import httpx
from support.admin import Admin
from support.pod import serve
from support.waiting import wait_for

from lorafleet_common.keys.guard import hash_of, new_key


def test_the_command_asks_for_keys_and_follows_the_file(
    base_folder: Path, adapter_folders: dict[str, Path], tmp_path: Path
) -> None:
    """From its first answer, before the model is loaded; what the operator asks a revision is charged to nobody."""
    keys = new_key(), new_key()
    path = tmp_path / "keys.json"

    def write(*known: str) -> None:
        entries = [{"name": f"team-{index}", "hashes": [hash_of(key)]} for index, key in enumerate(known)]
        path.write_text(json.dumps({"keys": entries}))

    write(keys[0])
    red = {"red": adapter_folders["red"]}
    with serve(base_folder, f"--keys-file={path}", adapters=red, wait_ready=False) as pod:

        def status(key: str) -> int:
            answer = httpx.get(f"{pod.url}/v1/nothing", headers={"authorization": f"Bearer {key}"}, trust_env=False)
            return answer.status_code

        assert pod.get("/v1/models").status_code == 401
        assert (status(keys[0]), status(keys[1])) == (404, 401)
        write(*keys)
        deadline = time.monotonic() + 60
        while pod.metric('lorafleet_keys{base="tiny"}') != 2:
            assert time.monotonic() < deadline, pod.logs
            time.sleep(0.05)
        assert (status(keys[0]), status(keys[1])) == (404, 404)
        assert pod.metric('lorafleet_keys_stale{base="tiny"}') == 0
        wait_for("ready", lambda: pod.get("/ready").status_code == 200)
        admin = Admin(pod.admin_url)
        known = admin.adapter("red")
        assert known is not None
        asked = {"name": "red", "revision": known.revision, "prompt": "one two", "maxTokens": 4}
        assert admin.request("POST", "/admin/v1/ask", asked)["numTokens"]
        admin.http.close()
        charged = [line for line in pod.get("/metrics").text.splitlines() if "lorafleet_key_tokens_total{" in line]
        assert all(line.endswith(" 0.0") for line in charged), charged
