"""ClientApp: takes the state_dict, adds a constant, sends the state_dict."""

import time

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    state = message.content["arrays"].to_torch_state_dict()
    begun = time.perf_counter()
    with torch.no_grad():
        for tensor in state.values():
            tensor += 0.001
    seconds = time.perf_counter() - begun
    content = RecordDict(
        {"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": 100, "seconds": seconds})}
    )
    return Message(content, reply_to=message)
