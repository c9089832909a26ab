"""AsyncClient against the fake server; what it shares with Client is tested there."""

import asyncio
import time

import grpc
import numpy as np
import pytest
from PIL import Image

from livematch import AsyncClient, Client, ContractError, InputError, RequestError, UnavailableError

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def images(drawing):
    """Rectangles whose left sides are 1, 2, ..., 12."""
    return [drawing.draw((64, 48), (left, 5, 30, 40), (200, 30, 30)) for left in range(1, 13)]


def run(server, use, **options):
    """Return what `use` returns for a client of `server`."""

    async def main():
        async with AsyncClient(server.url, **({"first_pause_s": 0.01, "max_tries": 3} | options)) as client:
            return await use(client)

    return asyncio.run(main())


async def collect(recognitions):
    return [found.boxes[0, 0] async for found in recognitions]


def test_it_recognizes_what_the_blocking_client_does(loopback_server, images, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(images[0]).save(path)

    async def use(client):
        return [await client.recognize_image(images[0]), await client.recognize_frame(path)], client.model_identity

    found, identity = run(loopback_server, use)
    with Client(loopback_server.url) as client:
        expected = client.recognize_image(images[0])
    for recognition in found:
        assert np.array_equal(recognition.boxes, expected.boxes)
        assert np.array_equal(recognition.embeddings, expected.embeddings)
    assert identity == "loopback-1"
    assert loopback_server.num_requests == {"recognize_image": 2, "recognize_frame": 1}


def test_it_connects_at_the_first_requests_without_async_with(loopback_server, images):
    async def main():
        client = AsyncClient(loopback_server.url)
        assert client.model_identity is None
        try:
            found = await asyncio.gather(*map(client.recognize_image, images))
            await client.check_identity()
        finally:
            await client.close()
        return [recognition.boxes[0, 0] for recognition in found]

    assert asyncio.run(main()) == list(range(1, 13))


def test_several_images_are_in_flight_and_come_in_order(loopback_server, images):
    loopback_server.delay_s = 0.05

    async def generate():
        for image in images:
            yield image

    async def use(client):
        return await collect(client.recognize_images(images, concurrency=4)), await collect(
            client.recognize_frames(generate(), concurrency=4)
        )

    assert run(loopback_server, use) == (list(range(1, 13)),) * 2
    assert loopback_server.max_num_parallel == 4


def test_an_error_comes_at_its_position(loopback_server, images):
    async def use(client):
        lefts = []
        with pytest.raises(InputError, match="got NoneType"):
            async for found in client.recognize_images([*images[:5], None, *images[5:]], concurrency=3):
                lefts.append(found.boxes[0, 0])
        return lefts

    assert run(loopback_server, use) == [1, 2, 3, 4, 5]


def test_closing_the_generator_cancels_the_requests(loopback_server, images):
    async def use(client):
        recognitions = client.recognize_images(images, concurrency=4)
        await anext(recognitions)
        loopback_server.delay_s = 30
        start_s = time.monotonic()
        await recognitions.aclose()
        loopback_server.delay_s = 0
        assert len(await client.recognize_image(images[0])) == 1
        return time.monotonic() - start_s

    assert run(loopback_server, use) < 10


def test_an_outage_is_retried_and_a_refusal_is_not(loopback_server, images):
    async def use(client):
        loopback_server.faults = [UNAVAILABLE, UNAVAILABLE]
        assert len(await client.recognize_image(images[0])) == 1
        loopback_server.faults = [grpc.StatusCode.INVALID_ARGUMENT]
        with pytest.raises(RequestError, match="a fault: INVALID_ARGUMENT"):
            await client.recognize_image(images[0])
        loopback_server.faults = [UNAVAILABLE] * 9
        with pytest.raises(UnavailableError, match="in 3 tries: a fault: UNAVAILABLE"):
            await client.recognize_image(images[0])
        assert len(loopback_server.faults) == 6

    run(loopback_server, use)


def test_different_models_after_an_outage_are_refused(loopback_server, images):
    async def use(client):
        loopback_server.faults = [UNAVAILABLE]
        loopback_server.identity = "loopback-2"
        with pytest.raises(ContractError, match="loopback-2 instead of loopback-1"):
            await client.recognize_image(images[0])

    run(loopback_server, use)


@pytest.mark.parametrize("state", ["in flight", "between tries"])
def test_closing_ends_a_request_of_another_task(loopback_server, images, state):
    async def use(client):
        if state == "in flight":
            loopback_server.delay_s = 30
        else:
            loopback_server.faults = [UNAVAILABLE]
        request = asyncio.create_task(client.recognize_image(images[0]))
        while not loopback_server.num_requests["recognize_image"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        await client.close()
        with pytest.raises(UnavailableError, match="closed"):
            await request
        with pytest.raises(UnavailableError, match="closed"):
            await client.recognize_image(images[0])

    run(loopback_server, use, first_pause_s=60)


def test_a_cancelled_request_stays_cancelled(loopback_server, images):
    async def use(client):
        loopback_server.delay_s = 30
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.recognize_image(images[0]), 0.2)
        loopback_server.delay_s = 0
        assert len(await client.recognize_image(images[0])) == 1

    run(loopback_server, use)


def test_a_failed_check_can_be_repeated(loopback_server, images):
    async def main():
        shape = loopback_server.shapes.pop("boxes")
        client = AsyncClient(loopback_server.url)
        for _ in range(2):
            with pytest.raises(ContractError, match=r"recognize_image .* unexpected outputs"):
                await client.recognize_image(images[0])
        loopback_server.shapes["boxes"] = shape
        assert len(await client.recognize_image(images[0])) == 1
        await client.close()

    asyncio.run(main())
