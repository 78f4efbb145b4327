"""The processes of a Ray cluster, with a stand-in for Ray: where they run, what they are told, and how they end."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from ramnet_np.experiment import ray_pool
from ramnet_np.experiment.ray_pool import Host, RayPool


class RayError(Exception):
    pass


class GetTimeoutError(Exception):
    pass


class Actor:
    """A process: ``messages`` that it has to tell, and whether it is ``dead`` or does not answer (``silent``)."""

    def __init__(self, silent, options, arguments):
        self.silent, self.options, self.arguments = silent, options, arguments
        self.messages, self.dead, self.given, self.asked = [], False, [], []
        self.start = SimpleNamespace(remote=self.given.append)
        self.events = SimpleNamespace(remote=self._ask)

    def _ask(self, seconds):
        self.asked.append(seconds)
        return Answer(self)


class Answer:
    def __init__(self, actor):
        self.actor = actor


class Ray:
    """What the pool uses of the module ``ray``."""

    exceptions = SimpleNamespace(RayError=RayError, GetTimeoutError=GetTimeoutError)

    def __init__(self, nodes=(), gpus=0, initialized=False, silent=()):
        self._nodes, self._gpus, self._initialized, self._silent = nodes, gpus, initialized, silent
        self.actors, self.killed, self.said, self.timeouts = [], [], [], []

    def is_initialized(self):
        return self._initialized

    def init(self, **options):
        assert options == {
            "address": "head:6379", "include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR",
        }  # fmt: skip
        self.said.append(("init",))

    def shutdown(self):
        self.said.append(("shutdown",))

    def cluster_resources(self):
        return {"CPU": 8.0} | ({"GPU": float(self._gpus)} if self._gpus else {})

    def nodes(self):
        return self._nodes

    def remote(self, cls):
        assert cls is Host

        def make(options, arguments):
            self.actors.append(Actor(len(self.actors) in self._silent, options, arguments))
            return self.actors[-1]

        return SimpleNamespace(
            options=lambda **options: SimpleNamespace(remote=lambda *arguments: make(options, arguments))
        )

    def get(self, answer, timeout=None):
        if timeout is not None:
            self.timeouts.append(timeout)
        if answer.actor.dead:
            raise RayError
        if answer.actor.silent:
            raise GetTimeoutError
        messages, answer.actor.messages = answer.actor.messages, []
        return messages

    def wait(self, answers, num_returns, timeout):
        assert (num_returns, timeout) == (1, 0.5)
        ready = [answer for answer in answers if answer.actor.dead or answer.actor.messages]
        return ready[:1], answers

    def kill(self, actor):
        self.killed.append(actor)


@pytest.fixture
def ray(monkeypatch):
    """Put a stand-in in the place of Ray."""

    def install(**options):
        one = Ray(**options)
        strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: (node, soft))
        monkeypatch.setitem(sys.modules, "ray", one)
        monkeypatch.setitem(sys.modules, "ray.util", SimpleNamespace(scheduling_strategies=strategies))
        monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
        return one

    return install


def node(name, cores, alive=True):
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": float(cores)} if cores else {}}


def pool(device="cpu", side_by_side=1, **more):
    return RayPool("head:6379", device, side_by_side, Path("runs"), "now", **more)


def run(key):
    return SimpleNamespace(key=key)


def told(one):
    return [(event.kind, event.run.key, event.what) for event in one.events(0.5)]


def test_the_cores_of_each_live_host_are_shared_out(ray):
    nodes = [node("a", 8), node("b", 8, alive=False), node("c", 3), node("d", 1), node("e", 0)]
    one = ray(nodes=nodes)
    with pool(side_by_side=2, text=Path("book.txt"), keep_model=True) as found:
        assert (found.size, found.free, found.running) == (5, 5, [])
    wanted = [("a", "4"), ("a", "4"), ("c", "1"), ("c", "1"), ("d", "1")]
    for actor, (host, threads) in zip(one.actors, wanted, strict=True):
        assert actor.options == {
            "max_concurrency": 2, "num_cpus": int(threads), "scheduling_strategy": (host, False),
            "runtime_env": {"env_vars": {"NUMBA_NUM_THREADS": threads}},
        }  # fmt: skip
        assert actor.arguments == ("cpu", 1, Path("runs").absolute(), "now", Path("book.txt").absolute(), True)
    assert one.killed == one.actors
    assert one.said == [("init",), ("shutdown",)]


def test_every_gpu_has_a_process_that_takes_several_runs(ray):
    one = ray(gpus=2)
    with pool("gpu", 3) as found:
        assert [actor.options for actor in one.actors] == 2 * [{"max_concurrency": 2, "num_gpus": 1, "num_cpus": 0}]
        assert one.actors[0].arguments == ("gpu", 3, Path("runs").absolute(), "now", None, False)
        assert found.free == 6
        for key in "abc":
            found.start(run(key))
        assert sorted(len(actor.given) for actor in one.actors) == [1, 2]  # who has fewest takes the next
        assert (found.free, sorted(run.key for run in found.running)) == (3, ["a", "b", "c"])
    one = ray(gpus=0)
    with pytest.raises(RuntimeError, match="must have a GPU for device 'gpu', got none"):
        pool("gpu").__enter__()
    assert one.said[-1] == ("shutdown",)


def test_a_cluster_that_was_there_before_stays(ray):
    one = ray(nodes=[node("a", 1)], initialized=True)
    with pool():
        pass
    assert one.said == []
    assert one.killed == one.actors


def test_what_has_happened_is_told_and_a_run_that_has_ended_makes_room(ray):
    one = ray(nodes=[node("a", 2)])
    with pool(side_by_side=2) as found:
        found.start(run("a"))
        found.start(run("b"))
        first, second = one.actors
        assert told(found) == []
        first.messages = [("progress", "a", 0.5), ("done", "a", {"accuracy": 1.0})]
        second.messages = [("progress", "b", 0.1)]
        assert told(found) == [("progress", "a", 0.5), ("done", "a", {"accuracy": 1.0})]
        assert (found.free, [run.key for run in found.running]) == (1, ["b"])
        assert told(found) == [("progress", "b", 0.1)]
        assert first.asked == second.asked == [0, ray_pool.POLL_SECONDS]


def test_a_process_that_ends_is_replaced_and_its_runs_are_told(ray):
    one = ray(nodes=[node("a", 1)], silent=(2,))
    with pool() as found:
        found.start(run("a"))
        one.actors[0].dead = True
        assert told(found) == [("died", "a", None)]
        assert (found.size, found.free, found.running) == (1, 1, [])
        assert one.actors[1].options == one.actors[0].options
        assert one.actors[1].arguments == one.actors[0].arguments
        found.start(run("b"))
        one.actors[1].dead = True
        with pytest.raises(RuntimeError, match="has no process left that could take runs"):
            told(found)
        assert one.killed == [one.actors[2]]  # it did not answer in time


def test_processes_that_do_not_answer_in_time_are_not_used(ray, monkeypatch):
    monkeypatch.setattr(ray_pool.time, "monotonic", iter([100.0, 110.0, 150.0, 170.0]).__next__)
    one = ray(nodes=[node("a", 3)], silent=(0, 2))
    with pool(side_by_side=3) as found:
        assert found.size == 1
        assert one.timeouts == [50.0, 10.0, 0.0]  # of a minute for all of them
        assert one.killed == [one.actors[0], one.actors[2]]
    monkeypatch.undo()


def test_a_cluster_where_nothing_is_free_is_one_sentence(ray):
    one = ray(nodes=[node("a", 1)], silent=(0,))
    with pytest.raises(RuntimeError, match="no CPU of the Ray cluster was free for 60 s"):
        pool().__enter__()
    assert one.said[-1] == ("shutdown",)


def test_a_host_says_all_that_has_happened_since_it_was_asked():
    host = Host("cpu", 0, Path("runs"), "now")
    host._send("progress", run("a"), 0.5)
    host._send("done", run("b"), None)
    assert host.events(5.0) == [("progress", "a", 0.5), ("done", "b", None)]
    assert host.events(0) == []
    threading.Timer(0.1, host._send, ("done", run("c"), None)).start()
    assert host.events(5.0) == [("done", "c", None)]  # which it waited for
