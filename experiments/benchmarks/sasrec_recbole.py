"""The RecBole side of the benchmarks ``sasrec`` and ``sequential`` (see ``peer_loop``).

``PYTHON sasrec_recbole.py THREADS`` needs recbole 1.2.1 and numpy below 2. Its models have the same
sizes, a softmax over the catalog, and RecBole's defaults otherwise. RecBole augments the data: each
training event of a user but the first is the target of one sample.
"""

import os
import pathlib
import sys
import tempfile

import recbole
import torch
from peer_loop import Stopwatch, serve
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed


class Peer:
    """RecBole's sequential models on the ml-100k in its package."""

    def versions(self) -> dict:
        """Returns the versions of the libraries."""
        return {"recbole": recbole.__version__, "torch": torch.__version__}

    def dataset(self) -> dict:
        """Returns the path of its example data."""
        folder = pathlib.Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
        return {"path": str(folder / "ml-100k.inter")}

    def start(self, length: int, width: int, blocks: int, seed: int, model: str = "SASRec") -> dict:
        """Makes a model and its data, with the last two events of each user left out.

        ``blocks`` and ``hidden_size`` are SASRec's; the others have ``embedding_size``.
        """
        sizes = {"embedding_size": width}
        if model == "SASRec":
            sizes = {"hidden_size": width, "n_layers": blocks}
        settings = {
            "data_path": str(pathlib.Path(self.dataset()["path"]).parents[1]),
            "checkpoint_dir": tempfile.gettempdir(),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
            "train_neg_sample_args": None,
            "loss_type": "CE",
            "MAX_ITEM_LIST_LENGTH": length,
            **sizes,
            "metrics": ["Hit", "NDCG"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "seed": seed,
            "use_gpu": False,
            "show_progress": False,
        }
        sys.argv = sys.argv[:1]  # RecBole reads the command line as settings
        os.chdir(tempfile.gettempdir())  # and writes its logs to the working directory
        config = Config(model=model, dataset="ml-100k", config_dict=settings)
        init_seed(config["seed"], config["reproducibility"])
        splits = data_preparation(config, create_dataset(config))
        self.train_data, self.valid_data, self.test_data = splits
        network = get_model(model)(config, self.train_data._dataset)
        self.trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
        self.epochs = 0
        return {"samples": len(self.train_data._dataset)}

    def train(self, passes: int) -> dict:
        """Runs epochs of its trainer."""
        with Stopwatch() as watch:
            for _ in range(passes):
                loss = self.trainer._train_epoch(self.train_data, self.epochs)
                self.epochs += 1
        return watch.took | {"loss": float(loss)}

    def fit(self, epochs: int, patience: int) -> dict:
        """Runs epochs until the validation event is ranked no better; takes the best epoch's.

        Returns the seconds of the epochs alone, without their validation.
        """
        trainer = self.trainer
        best, weights = -1.0, {}
        seconds = 0.0
        since = 0
        for epoch in range(epochs):
            with Stopwatch() as watch:
                trainer._train_epoch(self.train_data, epoch)
            seconds += watch.took["seconds"]
            value = float(trainer.evaluate(self.valid_data, load_best_model=False)["ndcg@10"])
            since += 1
            if value > best:
                best, since = value, 0
                weights = {k: x.clone() for k, x in trainer.model.state_dict().items()}
            if since >= patience:
                break
        trainer.model.load_state_dict(weights)
        return {"seconds": seconds, "epochs": epoch + 1, "ndcg@10": best}

    def evaluate(self) -> dict:
        """Runs its full ranking of the test events, seen items kept."""
        with Stopwatch() as watch:
            metrics = self.trainer.evaluate(self.test_data, load_best_model=False)
        return watch.took | {
            "ndcg@10": float(metrics["ndcg@10"]),
            "hr@10": float(metrics["hit@10"]),
        }


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    serve(Peer)
