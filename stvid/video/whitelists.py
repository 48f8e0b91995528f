"""The formats and protocols that FFmpeg may use, for every way in.

FFmpeg takes a text for a playlist, a list to join, or the description of a session, whatever the name of the file, and
opens what it names: other files, addresses of the network, named pipes that never answer. So it gets a list of the
formats that hold a video themselves, and none of the others is even opened; and a list of protocols, in which a file
may use none but its own.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

__all__ = ["FORMATS", "NETWORK_PROTOCOLS", "options_for", "refusal"]

FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpegtsraw", "mpeg", "mpegvideo"),
    *("flv", "live_flv", "kux", "asf", "asf_o", "ogg", "mxf", "mxf_opatom", "nut", "rm", "wtv", "gxf", "dv", "nsv"),
    *("h261", "h263", "h264", "hevc", "vvc", "evc", "av1", "obu", "ivf", "m4v", "vc1", "vc1test", "dirac", "dnxhd"),
    *("cavsvideo", "avs2", "avs3", "mjpeg", "mjpeg_2000", "mpjpeg", "smjpeg", "yuv4mpegpipe", "gif", "apng"),
    *("swf", "nuv", "pva", "ty", "dhav", "amv", "vivo", "ivr", "film_cpk", "flic", "roq", "smk", "bink", "cine", "lxf"),
    *("jpegxl_anim", "gif_pipe", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "ppm_pipe", "j2k_pipe"),
    *("jpegxl_pipe", "jpegls_pipe", "dpx_pipe", "exr_pipe", "qoi_pipe", "pam_pipe", "pgm_pipe", "pgmyuv_pipe"),
    # Sound alone, so that it can be said that there is no video.
    *("mp3", "wav", "w64", "aac", "ac3", "eac3", "flac", "aiff", "caf", "au", "amr", "ape", "wv", "tta"),
)
"""Names of FFmpeg's formats that hold their pictures themselves. Those that its build does not have do no harm."""

NETWORK_PROTOCOLS = "http,https,tls,tcp,udp,rtp,rtsp,rtsps,rtmp,rtmps,srt,crypto,hls"
"""The protocols that a URL may use; not that of files, which a playlist from the network must not make FFmpeg read."""

_NO_PROTOCOL = "none"  # bytes and pipes come through Python: FFmpeg is to open nothing by itself
_OF_SCHEME = {"rtsp": ("rtsp",), "rtsps": ("rtsp",), "rtp": ("rtp",), "srtp": ("rtp",)}
_NOT_LISTED = 22  # EINVAL


def options_for(*, url: str | None = None, device: str | None = None, path: bool = False) -> dict[str, str]:
    """Returns the options of FFmpeg that bound what it may open.

    Args:
        url: The address, of a stream in a network. A playlist of HLS is followed in the network if the address names
            one (``.m3u8``).
        device: The format of a camera.
        path: Whether FFmpeg opens a file by its path; otherwise it is given bytes.
    """
    formats: tuple[str, ...] = FORMATS
    protocols = "file" if path else _NO_PROTOCOL
    if device is not None:
        formats, protocols = (device,), "file"
    if url is not None:
        parts = urlsplit(url)
        formats += _OF_SCHEME.get(parts.scheme.lower(), ())
        formats += ("hls", "webvtt") if parts.path.lower().endswith((".m3u8", ".m3u")) else ()
        protocols = NETWORK_PROTOCOLS
    return {"format_whitelist": ",".join(formats), "protocol_whitelist": protocols}


def refusal(error: Any) -> str:
    """Returns why a file was not opened, for a message; empty if the list of formats is not the reason."""
    if getattr(error, "errno", None) != _NOT_LISTED:
        return ""
    return "is not a video file: it is a playlist, a list of other files, or of a format that is not read"
