"""The order in which jobs are served, by hand."""

import numpy as np

from cogview_jax.sampling.engine import SamplingRequest
from cogview_jax.serving.jobs import FairQueue, ImageJob


def job(client, index=0):
    request = SamplingRequest("a", 0, index)
    return ImageJob(request, np.zeros(1, np.int32), client, print, print)


def test_clients_take_turns_however_many_images_each_wants():
    queue = FairQueue()
    many = [job("a", index) for index in range(4)]
    queue.add(many)
    one, two = job("b"), [job("c"), job("c", 1)]
    queue.add([one])
    queue.add(two)
    order = [queue.pop() for _ in range(len(queue))]
    assert order == [many[0], one, two[0], many[1], two[1], many[2], many[3]]


def test_what_was_put_back_is_next_and_what_was_removed_never_comes():
    queue, first, second = FairQueue(), job("a"), job("b")
    queue.add([first, second])
    assert queue.pop() is first
    queue.put_back(first)
    assert queue.first() is first
    assert queue.remove(second)
    assert not queue.remove(second)
    assert [queue.pop()] == [first]
    assert queue.first() is None
    assert len(queue) == 0
