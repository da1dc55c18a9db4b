"""ServerApp: FedAvg over the state_dict in the file that the run configuration names; notes when each round ended."""

import json
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    notes = Path(str(config["notes"]))
    sites = int(config["sites"])

    def note(**values: float) -> None:
        with notes.open("a") as stream:
            stream.write(json.dumps(values) + "\n")

    def slowest(replies: list, weighting: str) -> MetricRecord:
        seconds = max(float(reply["metrics"]["seconds"]) for reply in replies)
        note(train=seconds)
        return MetricRecord({"seconds": seconds})

    def round_ended(number: int, arrays: ArrayRecord) -> MetricRecord:
        note(round=number, at=time.time())
        return MetricRecord({})

    while len(list(grid.get_node_ids())) < sites:  # so that round 1 does not count the wait for the nodes
        time.sleep(0.2)
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=sites,
        min_available_nodes=sites,
        train_metrics_aggr_fn=slowest,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(torch.load(str(config["weights"]), weights_only=True)),
        num_rounds=int(config["rounds"]),
        evaluate_fn=round_ended,
    )
    note(done=1)
