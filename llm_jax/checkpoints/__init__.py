"""To disk and back: checkpoints, opening a run or a converted model, the lock of a folder."""
