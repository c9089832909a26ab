import numpy as np
import pytest

from livematch import DecodeError, InputError, read_frames
from livematch.media.videos import read_stream

# Four quadrants of different colours, to detect rotation and mirroring: red, green / blue, black.
QUADRANTS = np.zeros((40, 60, 3), np.uint8)
QUADRANTS[:20, :30, 0] = QUADRANTS[:20, 30:, 1] = QUADRANTS[20:, :30, 2] = 255


def numbered_frames(num_frames):
    """Return frames whose brightness tells their number: 8 * (number % 30)."""
    return [np.full((48, 64, 3), 8 * (number % 30), np.uint8) for number in range(num_frames)]


def test_the_requested_frames_are_returned(tmp_path, drawing):
    drawing.write_clip(tmp_path / "v.mp4", numbered_frames(60))
    frames = dict(read_frames(tmp_path / "v.mp4", [59, 0, 17, 17]))
    assert list(frames) == [0, 17, 59]
    for number, pixels in frames.items():
        assert (pixels.shape, pixels.dtype) == ((48, 64, 3), np.uint8)
        assert np.abs(pixels.astype(int) - 8 * (number % 30)).max() <= 3


def moving_frames(num_frames):
    """Yield frames with a bright square that moves over noise, so that the encoder makes them refer to each other."""
    noise = np.random.default_rng(5).integers(0, 120, (48, 64, 3), np.uint8)
    for number in range(num_frames):
        frame = np.roll(noise, number, axis=1)
        frame[10:30, number : number + 12] = 250
        yield frame


def write_with_b_frames(path, num_frames, codec="libx264", change=lambda packets: None, **options):
    """Write a video with B-frames; `change` may alter its packets before they are written."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.max_b_frames = 64, 48, "yuv420p", 3
        frames = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in moving_frames(num_frames)]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        change(packets)
        container.mux(packets)


def every_frame(path):
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts", "v.h264", "mpeg4.mp4"])
def test_skipped_frames_change_nothing(tmp_path, name):
    """With times in the packets (mp4, mkv, ts), without any (a raw stream), and with another codec."""
    write_with_b_frames(tmp_path / name, 50, codec="mpeg4" if name == "mpeg4.mp4" else "libx264")
    expected = every_frame(tmp_path / name)
    assert len(expected) == 50
    for wanted in (range(50), range(0, 50, 7), range(3, 50, 10), [1], [49]):
        found = dict(read_frames(tmp_path / name, wanted))
        assert list(found) == list(wanted)
        assert all(np.array_equal(found[index], expected[index]) for index in wanted)


def test_wrong_packet_times_are_not_relied_on(tmp_path):
    def swap(packets):
        packets[20].pts, packets[22].pts = packets[22].pts, packets[20].pts

    write_with_b_frames(tmp_path / "v.mkv", 40, change=swap)
    expected = every_frame(tmp_path / "v.mkv")
    found = dict(read_frames(tmp_path / "v.mkv", range(40)))
    assert list(found) == list(range(40))
    assert all(np.array_equal(found[index], expected[index]) for index in range(40))


@pytest.mark.parametrize("name", ["v.mkv", "v.ts", "v.flv"])
def test_frames_whose_reference_was_cut_off_do_not_count(tmp_path, name):
    def cut(packets):
        """Keep the packets from the second key frame on; B-frames shown before it refer to frames that are gone."""
        del packets[: [index for index, packet in enumerate(packets) if packet.is_keyframe][1]]

    open_gop = {"x264-params": "open-gop=1:keyint=15:min-keyint=15:scenecut=0:bframes=3:b-adapt=0"}
    write_with_b_frames(tmp_path / name, 45, change=cut, **open_gop)
    expected = every_frame(tmp_path / name)
    found = dict(read_frames(tmp_path / name, [20]))
    assert np.array_equal(found[20], expected[20])
    assert np.array_equal(found[20], dict(read_frames(tmp_path / name, [0, 20]))[20])


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_rotated_video_is_returned_upright(tmp_path, drawing, quarter_turns):
    stored = np.rot90(QUADRANTS, -quarter_turns)
    drawing.write_clip(tmp_path / "v.mp4", [np.ascontiguousarray(stored)] * 3, quarter_turns=quarter_turns)
    ((_, pixels),) = read_frames(tmp_path / "v.mp4", [1])
    assert pixels.shape == QUADRANTS.shape
    # Inside the quadrants: chroma is stored at half size, so edges bleed.
    for rows, columns in ((slice(4, 16), slice(4, 26)), (slice(24, 36), slice(34, 56)), (slice(4, 16), slice(34, 56))):
        assert np.abs(pixels[rows, columns].astype(int) - QUADRANTS[rows, columns]).max() < 12


def test_colours_follow_the_declared_matrix(tmp_path):
    """Y 120, U 90, V 170 by the definitions: BT.601 gives (188, 102, 44), BT.709 (196, 107, 41)."""
    import av

    for colorspace, expected in ((5, (188, 102, 44)), (1, (196, 107, 41))):
        with av.open(str(tmp_path / "v.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.colorspace = colorspace
            frame = av.VideoFrame(64, 48, "yuv420p")
            for plane, value in zip(frame.planes, (120, 90, 170), strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        ((_, pixels),) = read_frames(tmp_path / "v.mp4", [0])
        assert np.abs(pixels[20, 20].astype(int) - expected).max() <= 2


def test_a_short_video_says_how_many_frames_it_has(tmp_path, drawing):
    drawing.write_clip(tmp_path / "v.mp4", numbered_frames(20))
    with pytest.raises(DecodeError, match=r"v\.mp4: has 20 frames, so there is no frame 20"):
        list(read_frames(tmp_path / "v.mp4", [0, 20]))


def test_broken_videos_name_file_and_reason(tmp_path, drawing):
    drawing.write_clip(tmp_path / "whole.mp4", numbered_frames(60))
    whole = (tmp_path / "whole.mp4").read_bytes()
    contents = {"truncated.mp4": whole[: len(whole) // 2], "empty.mp4": b"", "text.mp4": b"not a video\n" * 99}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DecodeError, match=name):
            list(read_frames(tmp_path / name, [0]))
    with pytest.raises(DecodeError, match="no such file"):
        list(read_frames(tmp_path / "missing.mp4", [0]))


def test_an_audio_file_has_no_video_stream(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DecodeError, match="no video stream"):
        list(read_frames(tmp_path / "a.mp4", [0]))


def test_a_video_without_a_decoder_is_refused(tmp_path, drawing):
    drawing.write_clip(tmp_path / "whole.mp4", numbered_frames(5))
    head, _, tail = (tmp_path / "whole.mp4").read_bytes().rpartition(b"avc1")
    (tmp_path / "v.mp4").write_bytes(head + b"zzzz" + tail)
    for read in (lambda: read_frames(tmp_path / "v.mp4", [0]), lambda: read_stream(str(tmp_path / "v.mp4"))):
        with pytest.raises(DecodeError, match=r"v\.mp4: not a readable video: ffmpeg has no decoder"):
            next(read())


def test_a_title_that_is_not_utf8_does_not_matter(tmp_path, drawing):
    drawing.write_clip(tmp_path / "v.mkv", numbered_frames(5))
    content = (tmp_path / "v.mkv").read_bytes()
    assert b"Lavf" in content  # the encoder's name, a text field like the title
    (tmp_path / "v.mkv").write_bytes(content.replace(b"Lavf", "商品".encode("gbk")))
    assert [index for index, _ in read_frames(tmp_path / "v.mkv", [0, 3])] == [0, 3]
    assert [frame.frame_index for frame in read_stream(str(tmp_path / "v.mkv"), 2)] == [0, 2, 4]


def test_negative_frame_is_refused(tmp_path):
    with pytest.raises(InputError, match="-1"):
        list(read_frames(tmp_path / "v.mp4", [-1, 3]))
