"""A page that upscales photos in the browser."""

from __future__ import annotations

import argparse
import functools
import http.server
import sys
from collections.abc import Sequence
from pathlib import Path

from ..export.web_demo import write_demo
from ..zoo import ZOO
from .common import add_architecture, load_models, parse, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """``web_demo.py -o DIR [--model M ...] [--serve]``."""
    parser = argparse.ArgumentParser(
        prog="web_demo",
        description="Write a static page that upscales photos in the browser, with nothing from outside.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the page")
    parser.add_argument(
        "--model",
        nargs="+",
        default=list(ZOO),
        metavar="M",
        help="the models in it, as for evaluate (default: the zoo)",
    )
    parser.add_argument(
        "--runtime-files",
        type=Path,
        metavar="DIR",
        help="dist/ of the npm package onnxruntime-web (default: fetched by npm)",
    )
    parser.add_argument(
        "--serve",
        type=_port,
        nargs="?",
        const=8000,
        metavar="PORT",
        help="then serve it on this machine (default: 8000)",
    )
    add_architecture(parser)
    args = parse(parser, arguments)
    write_demo(
        load_models(args.model, None, architecture=args.architecture),
        args.output,
        args.runtime_files,
        lambda text: print(text, file=sys.stderr),
    )
    print(f"written: {args.output}")
    if args.serve is None:
        print(
            f"A browser takes it from a server only: python scripts/web_demo.py -o {args.output} --serve, or any other."
        )
        return 0
    server = make_server(args.output, args.serve)
    print(f"http://127.0.0.1:{server.server_port}  (Ctrl-C ends it)", flush=True)
    with server:
        server.serve_forever()
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"'{text}' is no port: 0 to 65535")
    return int(text)


def make_server(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """A server of a folder on this machine alone, with the headers under which browsers give WebAssembly several threads."""
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Handler, directory=str(folder)))


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing: the page says what it does."""


def entry() -> int:
    """Entry point of scripts/web_demo.py."""
    return run_command(main)
