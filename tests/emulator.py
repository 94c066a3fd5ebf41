"""A bucket on loopback for tests: gcp-storage-emulator in a process of its own.

    python tests/emulator.py [PORT]

It prints its address. The bucket is named ``bucket`` and lies in memory.
"""

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator

BUCKET = "gs://bucket"


@contextlib.contextmanager
def emulator() -> Iterator[dict[str, str]]:
    """Yields the environment in which gcsfs, epath, tensorstore and TensorBoard use the bucket."""
    child = subprocess.Popen(
        [sys.executable, __file__], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        address = child.stdout.readline().strip()
        assert address, "the emulator has not started"
        yield {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else gcsfs asks Google about the bucket
        }
    finally:
        child.kill()
        child.wait()


def main(port: int = 0) -> None:
    from gcp_storage_emulator import server as emulated
    from gcp_storage_emulator.handlers import objects

    download = objects.download

    def with_generation(request, response, storage, *args, **kwargs):
        """Adds what Google's server says of an object, and tensorstore needs to write it again."""
        download(request, response, storage, *args, **kwargs)
        if response.status < 300:
            params = request.params
            stored = storage.get_file_obj(params["bucket_name"], params["object_id"])
            response["x-goog-generation"] = stored["generation"]
            response["x-goog-metageneration"] = stored["metageneration"]

    def move(request, response, storage, *args, **kwargs):
        """Renames an object, by the call that gcsfs tries first."""
        params = request.params
        params["dest_bucket_name"] = params["bucket_name"]
        objects.copy(request, response, storage)
        if response.status < 300:
            storage.delete_file(params["bucket_name"], params["object_id"])

    objects.download = with_generation
    for _, handlers in emulated.HANDLERS:
        handlers |= {name: with_generation for name, call in handlers.items() if call is download}
    rename = r"/o/(?P<object_id>.+)/moveTo/o/(?P<dest_object_id>.+)$"
    route = rf"^/storage/v1/b/(?P<bucket_name>[-.\w]+){rename}"
    emulated.HANDLERS = ((route, {emulated.POST: move}), *emulated.HANDLERS)
    logging.disable()
    server = emulated.create_server("localhost", port, in_memory=True, default_bucket="bucket")
    server.start()
    print(f"http://localhost:{server._api._httpd.server_address[1]}", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:  # it ends with the tests
        time.sleep(1)
    server.stop()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
