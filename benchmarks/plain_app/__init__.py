"""The federation that a Flower user writes first: FedAvg over whole state_dicts. Round overheads are compared with it."""
