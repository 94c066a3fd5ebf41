"""Recommenders over item sequences. Each model is a file; the rest of the room serves any of them.

- `sequences`: a log's events as item sequences, and sequences as padded windows;
- `model`: the interface of a sequential model, with user states and candidate scores;
- `sasrec`, `gru4rec`, `caser`, `rearec`: the networks; `bpr`: a vector of each user and item;
- `methods`: the models by name, each with its loss;
- `losses`, `objective`: losses of arrays, and a loss together with its draw of negatives;
- `training`, `shard_training`: trainers on windows in memory and on sample shards on disk;
- `evaluation`, `search`: ranks of held-out items, and the nearest rows of a table;
- `saving`, `recommender`: a fitted model on disk, and with item ids in place of codes;
- `fit`: SASRec from a log in one call, and any model on a range of a log.

A further model is one file with an ``nnx.Module`` of the interface in `model`. Trainers, evaluation
and saving take it as they take SASRec.

Axes of the room, beside those of the package (B batch, T time, D embedding, C candidates): U users,
I items of the catalog, W = T + 1 codes of a training window, M negatives, Q queries, R rows of a
searched table, A positions that are scored.
"""
