"""Flower's ClientApp. Every message goes through the gate; the work itself lies in `client.work`."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client import gate, work
from client.own_code import ANY_RELEASE
from client.site_folder import SiteFolder

app = ClientApp()


@app.query("prepare")
def prepare(message: Message, context: Context) -> Message:
    return _answer(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    return _answer(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return _answer(message, context)


def _answer(message: Message, context: Context) -> Message:
    folder = SiteFolder(Path(str(context.node_config["site-folder"])))
    return gate.answer(message, folder, work.do, any_release=context.node_config.get(ANY_RELEASE) is True)
