"""An S3 object store: moto's server in a process of its own, with its data in memory."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import boto3
from botocore.loaders import JSONFileLoader

from storage.media.object_store import S3Config
from storage.media.s3 import S3ObjectStore

SECONDS_TO_START: Final = 180.0
KEY: Final = "testing"
_LISTENING: Final = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")

_load_file: Final = JSONFileLoader().load_file


@cache
def _described(path: str) -> Any:
    """Load a file of botocore's service descriptions, cached: each session would parse them again,
    which takes longer than a test's requests."""
    return _load_file(path)


JSONFileLoader.load_file = lambda _self, path: _described(path)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A new bucket, with access to it that bypasses the server's code."""

    endpoint_url: str
    name: str
    client: Any

    def config(self, **further: Any) -> S3Config:
        """Return the configuration that reaches the bucket."""
        whole: dict[str, Any] = {
            "bucket": self.name,
            "endpoint_url": self.endpoint_url,
            "region_name": "us-east-1",
            "access_key_id": KEY,
            "secret_access_key": KEY,
            "addressing_style": "path",
            "encryption": "none",
            "kms_key_id": None,
            "customer_key": None,
            "storage_class": None,
            "connections": 4,
            "max_silence": 20.0,
        }
        return S3Config(**{**whole, **further})

    def section(self, **further: Any) -> dict[str, Any]:
        """Return the bucket's section of `homeserver.yaml`."""
        return {
            "bucket": self.name,
            "endpoint_url": self.endpoint_url,
            "region_name": "us-east-1",
            "access_key_id": KEY,
            "secret_access_key": KEY,
            "addressing_style": "path",
            **further,
        }

    def open(self, **further: Any) -> S3ObjectStore:
        """Open the bucket with the server's own client."""
        return S3ObjectStore(self.config(**further))

    def names(self) -> list[str]:
        """Return the names of all objects."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [each["Key"] for page in pages for each in page.get("Contents", ())]

    def unfinished(self) -> list[str]:
        """Return the names of objects whose multipart upload is not complete."""
        return [
            each["Key"]
            for each in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", ())
        ]


@dataclass(frozen=True, slots=True)
class RunningObjectStore:
    """A running moto server."""

    endpoint_url: str

    def bucket(self) -> Bucket:
        """Create a bucket."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY,
        )
        name = f"files-{uuid4().hex}"
        client.create_bucket(Bucket=name)
        return Bucket(self.endpoint_url, name, client)


@contextmanager
def hanging_object_store() -> Iterator[str]:
    """Run a server that accepts connections and never answers. Yields its URL."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def slowly_joining_object_store(seconds: float) -> Iterator[tuple[str, list[str]]]:
    """Run a server that accepts all parts and needs `seconds` to complete a multipart upload.
    Yields its URL and its log of requests."""
    asked: list[str] = []

    class Store(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self.answer("part", "")

        def do_POST(self) -> None:
            if "uploadId=" not in self.path:
                self.answer(
                    "begin",
                    "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>",
                )
            else:
                threading.Event().wait(seconds)
                self.answer(
                    "join",
                    '<CompleteMultipartUploadResult><ETag>"1"</ETag></CompleteMultipartUploadResult>',
                )

        def do_DELETE(self) -> None:
            self.answer("abort", "")

        def answer(self, what: str, text: str) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(what)
            self.send_response(200)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def running_object_store(folder: Path) -> Iterator[RunningObjectStore]:
    """Run a moto server while the context is open."""
    log = folder / "moto.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        began = time.monotonic()
        while (found := _LISTENING.search(log.read_text())) is None:
            if process.poll() is not None or time.monotonic() - began > SECONDS_TO_START:
                raise AssertionError(f"moto did not start: {log.read_text()}")
            time.sleep(0.02)
        yield RunningObjectStore(found[1])
    finally:
        process.kill()
        process.wait()
