"""What is kept is what the frozen part computes, for the sample that asks for it, or there is no store."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, WeightedRandomSampler

import frostline as fl
from frostline.errors import FrostlineError
from frostline.testing import CLOSE, SAME

COUNT = 11


def parts_of(net, x):
    return fl.split(net, fl.trace(net, x[:4]), 1)


def linear_task():
    """A network, N inputs of which none is like another, and their numbers as labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, COUNT)), torch.randn(COUNT, 4)
    return net, fl.TensorSamples(x, torch.arange(COUNT))


class Kept(Dataset):
    """A store as a data set of torch: kept row, label and number of each sample."""

    def __init__(self, store, labels):
        self.store, self.labels = store, labels

    def __len__(self):
        return len(self.store)

    def __getitem__(self, i):
        (row,) = self.store.read([i])
        return row[0], self.labels[i]


@pytest.mark.parametrize("how", ["shuffle", "drop_last", "workers", "subset", "weighted"])
def test_case_21_features_match_their_labels_by_sample_however_they_are_drawn(tmp_path, how):
    net, samples = linear_task()
    frozen = parts_of(net, samples.read(range(COUNT))[0]).frozen
    (expected,) = frozen(*samples.read(range(COUNT)))
    kept = Kept(fl.cache(frozen, samples, tmp_path / "store", engine="torch", batch_size=4), samples.labels)
    draw = torch.Generator().manual_seed(3)
    loader = {
        "shuffle": lambda: DataLoader(kept, batch_size=4, shuffle=True, generator=draw),
        "drop_last": lambda: DataLoader(kept, batch_size=4, shuffle=True, drop_last=True, generator=draw),
        "workers": lambda: DataLoader(kept, batch_size=4, shuffle=True, num_workers=2, generator=draw),
        "subset": lambda: DataLoader(Subset(kept, [9, 2, 5]), batch_size=2),
        "weighted": lambda: DataLoader(
            kept, batch_size=4, sampler=WeightedRandomSampler([1.0 + i for i in range(COUNT)], 20, generator=draw)
        ),
    }[how]()

    for rows, labels in loader:
        torch.testing.assert_close(rows, expected[labels], **CLOSE)


def test_case_24_autocast_around_the_build_changes_no_bit_of_the_store(tmp_path):
    net, samples = linear_task()
    frozen = parts_of(net, samples.read(range(COUNT))[0]).frozen
    plain = fl.cache(frozen, samples, tmp_path / "plain", engine="torch")

    with torch.autocast("cpu", torch.bfloat16):
        store = fl.cache(frozen, samples, tmp_path / "autocast", engine="torch")

    (a,), (b,) = plain.read(range(COUNT)), store.read(range(COUNT))
    torch.testing.assert_close(a, b, **SAME)


class OfManySizes:
    """Samples of which the later ones are longer."""

    views, preparation = 1, "as they are"

    def __init__(self, longer):
        self.longer = longer
        self.labels = torch.arange(6) % 2
        self.names = self.digests = tuple(map(str, range(6)))

    def __len__(self):
        return 6

    def read(self, rows, view=0):
        return (torch.ones(len(rows), 3, 8 + (max(rows) > 3) * self.longer),)


# Twice the row, too, could be taken for two rows.
@pytest.mark.parametrize("longer", [1, 6])
def test_case_25_samples_of_many_sizes_are_refused_in_words(tmp_path, longer):
    net = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    frozen = parts_of(net, torch.ones(4, 3, 8)).frozen

    with pytest.raises(FrostlineError, match=r"4, \d+\) for the samples 4, 5 and was .*4, 6"):
        fl.cache(frozen, OfManySizes(longer), tmp_path / "store", engine="torch", batch_size=2)

    assert list(tmp_path.iterdir()) == []
