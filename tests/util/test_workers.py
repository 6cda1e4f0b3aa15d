"""Threads in order, and worker processes: bounded, light, honest about failures, gone with the main process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import worker_tasks

from util.errors import UserError
from util.workers import IGNORED_SIGNALS, JOBS_PER_WORKER, MAX_PENDING, WorkerPool, ordered_map

ROOT = Path(__file__).parents[2]


def done(folder):
    return {int(path.name) for path in folder.iterdir() if path.name.isdecimal()}


def test_every_task_is_done_once_the_block_ends_by_so_many_processes(tmp_path):
    with WorkerPool(worker_tasks.append_slowly, tmp_path, 2) as pool:
        for task in range(20):
            pool.submit(task)
    assert done(tmp_path) == set(range(20))
    pids = {(tmp_path / str(task)).read_text() for task in range(20)}
    assert len(pids) == 2
    assert str(os.getpid()) not in pids


def test_a_pool_without_tasks_ends(tmp_path):
    with WorkerPool(worker_tasks.append, tmp_path, 2):
        pass
    assert done(tmp_path) == set()


def test_submit_waits_while_too_many_tasks_wait(tmp_path):
    with WorkerPool(worker_tasks.sleep, tmp_path, 1) as pool:
        for task in range(6):
            pool.submit(task)
            assert len(done(tmp_path)) >= task + 1 - JOBS_PER_WORKER


def test_an_error_is_raised_with_its_type_and_message_and_other_tasks_are_kept(tmp_path):
    with pytest.raises(UserError, match="task 3 is odd; give an even one"), WorkerPool(
        worker_tasks.fail_on_odd, tmp_path, 1
    ) as pool:  # fmt: skip
        for task in (0, 2, 3):
            pool.submit(task)
    assert done(tmp_path) == {0, 2}


def test_an_error_that_cannot_be_sent_comes_in_words(tmp_path):
    with pytest.raises(RuntimeError, match="Local: unsendable"), WorkerPool(
        worker_tasks.raise_what_cannot_be_sent, tmp_path, 1
    ) as pool:  # fmt: skip
        pool.submit(0)


def test_a_process_that_dies_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ChildProcessError, match=r"exit code -9.*--num_workers"), WorkerPool(
        worker_tasks.die, tmp_path, 2
    ) as pool:  # fmt: skip
        pool.submit(0)


def test_workers_that_write_and_score_masks_import_neither_torch_nor_the_main_script(tmp_path):
    with WorkerPool(worker_tasks.write_imports, tmp_path, 1) as pool:
        pool.submit(0)
    imports = {name.split(".")[0] for name in (tmp_path / "imports").read_text().split()}
    assert "cv2" in imports
    assert not imports & {"torch", "diffusers", "transformers", "accelerate", "pytest"}


def test_when_the_main_process_is_killed_its_workers_go(tmp_path):
    script = (
        "import sys, time, worker_tasks\nfrom util.workers import IGNORED_SIGNALS, WorkerPool\n"
        "with WorkerPool(worker_tasks.append, sys.argv[1], 2) as pool:\n"
        "    for task in range(20): pool.submit(task)\n"
        "    time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    main = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL
    )  # fmt: skip
    until(lambda: len(done(tmp_path)) == 20)
    workers = {int((tmp_path / str(task)).read_text()) for task in range(20)}
    assert all(is_alive(pid) for pid in workers)
    main.send_signal(signal.SIGKILL)
    main.wait()
    until(lambda: not any(is_alive(pid) for pid in workers))


def until(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it never happened")


def is_alive(pid):
    """Whether there is such a process, and one that still runs: the dead may wait for somebody to collect them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_results_come_in_the_order_of_the_items_whatever_they_take():
    def work(number):
        time.sleep(0.01 * (number % 3 == 0))
        return number * number

    assert list(ordered_map(work, range(20))) == [number * number for number in range(20)]


def test_items_run_beside_each_other():
    meeting = threading.Barrier(MAX_PENDING, timeout=10)
    assert len(list(ordered_map(lambda _: meeting.wait(), range(MAX_PENDING)))) == MAX_PENDING


def test_as_many_items_run_as_were_asked_for():
    meeting = threading.Barrier(7, timeout=10)
    assert len(list(ordered_map(lambda _: meeting.wait(), range(7), max_pending=7))) == 7


def test_no_more_items_are_taken_than_may_be_pending():
    taken = 0

    def items():
        nonlocal taken
        for number in range(30):
            taken = number + 1
            yield number

    for done, _ in enumerate(ordered_map(str, items()), start=1):
        assert taken <= done + MAX_PENDING


def test_an_error_of_the_work_or_of_the_items_reaches_the_caller_at_its_place():
    def work(number):
        if number == 3:
            raise OSError("disk full")
        return number

    results = ordered_map(work, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk full"):
        next(results)

    def items():
        yield 1
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        list(ordered_map(str, items()))


def test_a_caller_that_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    results = ordered_map(str, range(100))
    next(results)
    results.close()
    assert threading.active_count() == before


# Where and how workers start


def test_results_of_a_map_come_from_workers_and_no_more_jobs_wait_than_may(tmp_path):
    taken = []

    def jobs():
        for number in range(9):
            taken.append(number)
            yield number

    with WorkerPool(worker_tasks.double, None, 1) as pool:
        results = pool.map(jobs())
        first = next(results)
        assert len(taken) <= 1 + JOBS_PER_WORKER
        assert sorted([first, *results]) == [2 * number for number in range(9)]


@pytest.mark.parametrize("number", IGNORED_SIGNALS, ids=lambda number: number.name)
def test_a_worker_ignores_the_signals_of_the_main_process(tmp_path, number):
    with WorkerPool(worker_tasks.signal_itself, tmp_path, 1) as pool:
        pool.submit(number)
    assert done(tmp_path) == {int(number)}


def test_a_worker_ignores_signals_from_its_first_line(tmp_path):
    before = set(multiprocessing.active_children())
    with WorkerPool(worker_tasks.append, tmp_path, 1) as pool:
        pool.submit(0)
        (worker,) = set(multiprocessing.active_children()) - before
        while worker.is_alive() and not done(tmp_path):  # while it starts, too
            for number in IGNORED_SIGNALS:
                os.kill(worker.pid, number)
            time.sleep(0.005)
    assert done(tmp_path) == {0}


def test_signals_and_environment_of_the_main_process_stay(tmp_path):
    environment, blocked, main = dict(os.environ), signal.pthread_sigmask(signal.SIG_BLOCK, []), sys.modules["__main__"]
    with WorkerPool(worker_tasks.append, tmp_path, 1) as pool:
        pool.submit(0)
    assert dict(os.environ) == environment
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked
    assert sys.modules["__main__"] is main


UNGUARDED = (
    "import sys, worker_tasks\n"
    "from util.workers import IGNORED_SIGNALS, WorkerPool\n"
    "print('began', flush=True)\n"
    "with WorkerPool(worker_tasks.append, FOLDER, 2) as pool:\n"
    "    for task in range(4): pool.submit(task)\n"
)


@pytest.mark.parametrize("way", ["standard input", "script", "notebook"])
def test_a_pool_works_without_a_main_guard(tmp_path, way):
    out = tmp_path / "out"
    out.mkdir()
    script = UNGUARDED.replace("FOLDER", repr(str(out)))
    command, given = [sys.executable, "-"], script
    if way == "script":
        (tmp_path / "script.py").write_text(script)
        command, given = [sys.executable, str(tmp_path / "script.py")], None
    elif way == "notebook":  # code runs in a __main__ without a file, as a kernel has it
        given = (
            "import sys, types\n"
            "main = sys.modules['__main__'] = types.ModuleType('__main__')\n"
            f"exec(compile({script!r}, '<cell 1>', 'exec'), main.__dict__)\n"
        )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    finished = subprocess.run(
        command, input=given, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("began") == 1
    assert done(out) == {0, 1, 2, 3}
