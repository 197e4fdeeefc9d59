"""matrix-nio: files, plain and encrypted, and their thumbnails."""

import asyncio
import io

import nio
from nio.crypto.attachments import decrypt_attachment

from tests.clients.nio_clients import expect, new_client
from tests.helpers.images import opened, picture
from tests.helpers.real_server import RealServer


def test_files_are_uploaded_and_downloaded(real_server: RealServer) -> None:
    asyncio.run(_files(real_server))


async def _files(server: RealServer) -> None:
    async with new_client(server, "nio-carol") as carol, new_client(server, "nio-dave") as dave:
        image = picture(1000, 500)
        uploaded, _ = await carol.upload(
            io.BytesIO(image), content_type="image/png", filename="чой.png", filesize=len(image)
        )
        uri = expect(uploaded, nio.UploadResponse).content_uri
        got = expect(await dave.download(uri), nio.MemoryDownloadResponse)
        assert (got.body, got.content_type, got.filename) == (image, "image/png", "чой.png")
        server_name, _, media_id = uri.removeprefix("mxc://").partition("/")
        small = expect(
            await dave.thumbnail(server_name, media_id, 96, 96, nio.ResizingMethod.crop),
            nio.ThumbnailResponse,
        )
        assert opened(small.body).size == (96, 96)

        secret = bytes(range(256)) * 10_000
        uploaded, keys = await carol.upload(io.BytesIO(secret), encrypt=True, filesize=len(secret))
        assert keys is not None
        uri = expect(uploaded, nio.UploadResponse).content_uri
        got = expect(await dave.download(uri), nio.MemoryDownloadResponse)
        assert isinstance(got.body, bytes)
        assert secret not in got.body
        assert (
            decrypt_attachment(got.body, keys["key"]["k"], keys["hashes"]["sha256"], keys["iv"])
            == secret
        )

        config = expect(
            await carol.content_repository_config(), nio.ContentRepositoryConfigResponse
        )
        assert config.upload_size == 50 * 1024 * 1024
