import inspect
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from livematch import AsyncClient, Client, ContractError, InputError, RequestError, UnavailableError

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def quick_client(server, **options) -> Client:
    return Client(server.url, **({"first_pause_s": 0.01, "max_tries": 3} | options))


@pytest.fixture
def image(drawing):
    return drawing.draw((64, 48), (10, 5, 30, 40), (200, 30, 30))


def test_recognition_has_only_the_counted_rows(loopback_server, image, drawing):
    with quick_client(loopback_server) as client:
        found = client.recognize_image(image)
        nothing = client.recognize_frame(np.full((8, 8, 3), 255, np.uint8))
    boxes, scores, _, embeddings = drawing.recognize(image)
    assert found.boxes.tolist() == [[10, 5, 30, 40]]
    assert found.scores == pytest.approx(scores)
    assert np.array_equal(found.embeddings, embeddings)
    assert (found.boxes.dtype, found.scores.dtype, found.embeddings.dtype) == (np.float32,) * 3
    assert len(boxes) == len(found) == 1
    assert len(nothing) == 0
    assert (nothing.boxes.shape, nothing.embeddings.shape) == ((0, 4), (0, 2048))
    assert loopback_server.num_requests == {"recognize_image": 1, "recognize_frame": 1}


def test_a_mirrored_view_is_sent_mirrored(loopback_server, image):
    with quick_client(loopback_server) as client:
        mirrored = client.recognize_image(image[:, ::-1])
    assert mirrored.boxes.tolist() == [[34, 5, 54, 40]]


def test_identity_is_read_from_the_config(loopback_server):
    with quick_client(loopback_server) as client:
        assert client.model_identity == "loopback-1"
    loopback_server.identity = None
    with quick_client(loopback_server) as client:
        assert client.model_identity is None


def test_priority_and_timeout_are_sent_along(loopback_server, image):
    with quick_client(loopback_server) as client:
        client.recognize_image(image)
    assert loopback_server.parameters == {"priority": 2, "timeout": 120_000_000}
    with quick_client(loopback_server, priority="live", timeout_s=1.5) as client:
        client.recognize_image(image)
    assert loopback_server.parameters == {"priority": 1, "timeout": 1_500_000}


def test_overload_is_retried(loopback_server, image, caplog):
    with quick_client(loopback_server) as client, caplog.at_level(logging.WARNING):
        loopback_server.faults = [UNAVAILABLE, UNAVAILABLE]
        assert len(client.recognize_image(image)) == 1
    assert caplog.text.count("trying again: a fault: UNAVAILABLE") == 1  # one line for the whole outage


def test_retries_are_bounded(loopback_server, image):
    with quick_client(loopback_server) as client:
        loopback_server.faults = [UNAVAILABLE] * 9
        with pytest.raises(UnavailableError, match=r"in 3 tries: a fault: UNAVAILABLE"):
            client.recognize_image(image)
        assert len(loopback_server.faults) == 6


def test_a_refused_request_is_not_retried(loopback_server, image):
    with quick_client(loopback_server) as client:
        loopback_server.faults = [grpc.StatusCode.INVALID_ARGUMENT]
        with pytest.raises(RequestError, match="a fault: INVALID_ARGUMENT"):
            client.recognize_image(image)
        assert len(client.recognize_image(image)) == 1
    assert loopback_server.num_requests["recognize_image"] == 2


def test_errors_of_a_stopping_server_are_retried(loopback_server, image):
    with quick_client(loopback_server) as client:
        loopback_server.is_ready = False
        loopback_server.faults = [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL]
        assert len(client.recognize_image(image)) == 1
        loopback_server.faults = [grpc.StatusCode.NOT_FOUND] * 3
        with pytest.raises(UnavailableError, match="in 3 tries: a fault: NOT_FOUND"):
            client.recognize_image(image)


def test_a_restarted_server_is_reached_again(loopback_server, image):
    with quick_client(loopback_server, first_pause_s=0.2, max_tries=8) as client:
        client.recognize_image(image)
        loopback_server.stop()
        restart = threading.Timer(0.7, loopback_server.start)
        restart.start()
        assert len(client.recognize_image(image)) == 1
        restart.join()


def test_a_server_that_serves_different_models_after_an_outage_is_refused(loopback_server, image):
    with quick_client(loopback_server) as client:
        loopback_server.faults = [UNAVAILABLE]
        assert len(client.recognize_image(image)) == 1  # back with the same ones
        loopback_server.faults = [UNAVAILABLE]
        loopback_server.identity = "loopback-2"
        for recognize in (client.recognize_image, client.recognize_frame):
            with pytest.raises(ContractError, match=r"127.* other models .*: loopback-2 instead of loopback-1"):
                recognize(image)


def test_a_server_that_names_the_classes_differently_after_an_outage_is_refused(loopback_server, image):
    with quick_client(loopback_server) as client:
        loopback_server.faults = [UNAVAILABLE]
        loopback_server.class_names = ("wide", "tall")
        with pytest.raises(
            ContractError, match=r"other class names .*: \('wide', 'tall'\) instead of \('tall', 'wide'"
        ):
            client.recognize_image(image)


def test_nobody_listening(loopback_server):
    loopback_server.stop()
    with pytest.raises(UnavailableError, match=rf"no answer from the server at {loopback_server.url} in 2 tries"):
        quick_client(loopback_server, max_tries=2)


def test_a_slow_response_times_out(loopback_server, image):
    with quick_client(loopback_server, timeout_s=0.2, max_tries=1) as client:
        loopback_server.delay_s = 1.0
        with pytest.raises(UnavailableError, match="in 1 tries"):
            client.recognize_image(image)


def test_closing_ends_a_wait_in_another_thread(loopback_server, image):
    client = quick_client(loopback_server, first_pause_s=60)
    loopback_server.faults = [UNAVAILABLE] * 3
    errors: list[Exception] = []

    def ask():
        try:
            client.recognize_image(image)
        except UnavailableError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while len(loopback_server.faults) == 3:
        time.sleep(0.01)
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert "closed" in str(errors[0])


def test_a_copy_can_be_closed_alone_and_is_closed_with_its_original(loopback_server, image):
    with quick_client(loopback_server) as client:
        first, second = client.copy(), client.copy()
        first.close()
        with pytest.raises(UnavailableError, match="closed"):
            first.recognize_image(image)
        assert (len(second.recognize_image(image)), len(client.recognize_image(image))) == (1, 1)
    with pytest.raises(UnavailableError, match="closed"):
        second.recognize_image(image)
    with pytest.raises(UnavailableError, match="closed"):  # as when a server dies while a run begins
        client.copy().recognize_image(image)


def test_unexpected_tensors_are_named(loopback_server):
    loopback_server.shapes["embeddings"] = ("FP64", [-1, -1, 512])
    with pytest.raises(ContractError, match=r"recognize_image.*embeddings FP64 .* instead of .*embeddings FP32"):
        quick_client(loopback_server)


def test_the_server_says_how_long_embeddings_are(loopback_server):
    with quick_client(loopback_server) as client, client.copy() as copy:
        assert client.embedding_size == copy.embedding_size == 2048
    loopback_server.shapes["embeddings"] = ("FP32", [-1, -1, 384])
    with quick_client(loopback_server) as client:
        assert client.embedding_size == 384
    loopback_server.shapes["embeddings"] = ("FP32", [-1, -1, -1])
    with pytest.raises(ContractError, match=r"recognize_image.* does not say how long its embeddings are"):
        quick_client(loopback_server)


def test_the_server_names_the_classes(loopback_server, image):
    with quick_client(loopback_server) as client, client.copy() as copy:
        assert client.class_names == copy.class_names == ("tall", "wide")
        assert client.recognize_image(image).labels.tolist() == ["tall"]
        assert copy.recognize_image(image.transpose(1, 0, 2)).labels.tolist() == ["wide"]
    loopback_server.class_names = ()
    with quick_client(loopback_server) as client:
        assert client.class_names == ()
        assert client.recognize_image(image).labels.tolist() == ["0"]


@pytest.mark.parametrize("names", [["tall", 7], "tall", {"0": "tall"}])
def test_class_names_that_are_no_list_of_strings_are_refused(loopback_server, names):
    loopback_server.class_names = names
    with pytest.raises(ContractError, match=r"class_names of crop_and_embed at .*, not a list in JSON"):
        quick_client(loopback_server)


def test_a_class_without_a_name_is_refused(loopback_server, image):
    loopback_server.class_names = ("tall",)
    with quick_client(loopback_server) as client:
        assert client.recognize_image(image).labels.tolist() == ["tall"]
        with pytest.raises(ContractError, match="a box has the class 1, but the server names 1 classes"):
            client.recognize_image(image.transpose(1, 0, 2))


def test_a_missing_model_is_named(loopback_server):
    del loopback_server.num_requests["recognize_frame"]
    with pytest.raises(ContractError, match="does not serve recognize_frame"):
        quick_client(loopback_server)


@pytest.fixture
def second_server(drawing):
    server = drawing.LoopbackServer()
    yield server
    server.stop()


def ask_in_parallel(client, image, num_requests):
    with ThreadPoolExecutor(4) as threads:
        return [len(found) for found in threads.map(client.recognize_image, [image] * num_requests)]


def test_several_servers_share_the_work(loopback_server, second_server, image):
    servers = (loopback_server, second_server)
    for server in servers:
        server.delay_s = 0.05
    with Client([server.url for server in servers]) as client:
        assert ask_in_parallel(client, image, 20) == [1] * 20
    counts = [server.num_requests["recognize_image"] for server in servers]
    assert sum(counts) == 20
    assert min(counts) >= 7


def test_a_server_that_stops_leaves_the_work_to_the_other(loopback_server, second_server, image):
    with Client([loopback_server.url, second_server.url], first_pause_s=30) as client:
        second_server.stop()
        start_s = time.monotonic()
        assert ask_in_parallel(client, image, 20) == [1] * 20
        assert time.monotonic() - start_s < 30  # without a pause


def test_each_server_is_tried_as_often_as_one_alone(loopback_server, second_server, image):
    servers = (loopback_server, second_server)
    with Client([server.url for server in servers], first_pause_s=0.01, max_tries=3) as client:
        for server in servers:
            server.faults = [UNAVAILABLE] * 9
        with pytest.raises(UnavailableError, match="in 3 tries: a fault"):
            client.recognize_image(image)
    assert [len(server.faults) for server in servers] == [6, 6]


def test_servers_with_different_class_names_are_refused(loopback_server, second_server):
    second_server.class_names = ("wide", "tall")
    with pytest.raises(ContractError, match=r"the servers name the classes differently: .*'wide', 'tall'"):
        Client([loopback_server.url, second_server.url])


def test_servers_with_different_models_are_refused(loopback_server, second_server):
    second_server.identity = "loopback-2"
    with pytest.raises(ContractError, match=rf"loopback-1 at {loopback_server.url}, loopback-2 at {second_server.url}"):
        Client([loopback_server.url, second_server.url])


@pytest.fixture
def images(drawing):
    """Rectangles whose left sides are 1, 2, ..., 12."""
    return [drawing.draw((64, 48), (left, 5, 30, 40), (200, 30, 30)) for left in range(1, 13)]


def test_several_images_are_in_flight_and_come_in_order(loopback_server, images):
    loopback_server.delay_s = 0.05
    with quick_client(loopback_server) as client:
        for recognize in (client.recognize_images, client.recognize_frames):
            assert [found.boxes[0, 0] for found in recognize(iter(images), concurrency=4)] == list(range(1, 13))
    assert loopback_server.max_num_parallel == 4
    assert loopback_server.num_requests == {"recognize_image": 12, "recognize_frame": 12}


def test_images_are_taken_only_as_they_are_needed(loopback_server, images):
    taken = []
    with quick_client(loopback_server) as client:
        recognitions = client.recognize_images((taken.append(0) or image for image in images), concurrency=3)
        assert taken == []
        next(recognitions)
        assert len(taken) == 3
        next(recognitions)
        assert len(taken) == 4


@pytest.mark.parametrize("source", ["an image", "the iterable"])
def test_an_error_comes_at_its_position(loopback_server, images, source):
    def generate():
        yield from images[:5]
        if source == "the iterable":
            raise InputError("got NoneType")
        yield None
        yield from images[5:]

    lefts = []
    with quick_client(loopback_server) as client, pytest.raises(InputError, match="got NoneType"):
        for found in client.recognize_images(generate(), concurrency=3):
            lefts.append(found.boxes[0, 0])
    assert lefts == [1, 2, 3, 4, 5]


def test_closing_the_generator_ends_its_requests_only(loopback_server, images):
    with quick_client(loopback_server, first_pause_s=60) as client:
        recognitions = client.recognize_images(images, concurrency=4)
        next(recognitions)
        while loopback_server.num_requests["recognize_image"] < 4:
            time.sleep(0.01)
        loopback_server.faults = [UNAVAILABLE]
        next(recognitions)
        while loopback_server.faults:
            time.sleep(0.01)
        start_s = time.monotonic()
        recognitions.close()  # one request is in its pause of 60 s
        assert time.monotonic() - start_s < 30
        assert len(client.recognize_image(images[0])) == 1


@pytest.mark.parametrize("concurrency", [0, 1.5, "4"])
def test_concurrency_must_be_a_count(loopback_server, images, concurrency):
    with quick_client(loopback_server) as client, pytest.raises(InputError, match=r"concurrency must be .*, got"):
        client.recognize_images(images, concurrency=concurrency)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_default_address_is_tritons(kind):
    assert inspect.signature(kind).parameters["urls"].default == "127.0.0.1:8001"
