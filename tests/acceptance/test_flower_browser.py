"""Flower's pages in a real browser: what a person sees of a worker, a task and the queues."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from nanogrid.sqs.queues import resolve
from tests.support.services import Service, aws_client, wait_until
from tests.support.worker import Flower, Grid, Worker, grid

BROWSER_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FINISHED = "seen-in-a-browser"
WAITING = 4


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium without a window."""
    binary = shutil.which("chromium")
    assert binary, "chromium is not installed: run `make setup`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=BROWSER_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, moto: Service, redis_server: Service
) -> Iterator[tuple[Grid, Worker, Flower]]:
    """A worker that consumes `python` only, and Flower."""
    redis_url = f"redis://127.0.0.1:{redis_server.port}"
    with (
        grid(
            tmp_path_factory.mktemp("browser"),
            aws_url=f"http://127.0.0.1:{moto.port}",
            redis_url=f"{redis_url}/6",
            unique="browser",
        ) as made,
        made.flower(app="nanogrid") as flower,
        made.worker(app="nanogrid", queues="python") as worker,
    ):
        wait_until(
            lambda: "active_queues" in flower.api("/api/workers").get(worker.name, {}), "Flower knows the worker"
        )
        yield made, worker, flower


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page, and a failure of the test for every error in its scripts."""
    errors: list[str] = []
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert errors == []


def test_worker_is_shown(stack: tuple[Grid, Worker, Flower], page: Page) -> None:
    """The first page lists the worker as online."""
    _, worker, flower = stack
    page.goto(flower.url)
    row = page.locator("tr", has_text=worker.name)
    expect(row).to_be_visible()
    expect(row).to_contain_text("Online")


def test_finished_task_is_shown(stack: tuple[Grid, Worker, Flower], page: Page) -> None:
    """The page of tasks lists a finished task, and its own page tells its worker and state."""
    made, worker, flower = stack
    bare = {
        "requestId": FINISHED,
        "functionId": "hello",
        "runtime": "python",
        "s3Bucket": "no-such-bucket",
        "s3Key": "a.zip",
    }
    made.app.send_task("nanogrid.execute_function", (bare,), task_id=FINISHED).get(timeout=20)
    wait_until(lambda: flower.api("/api/tasks").get(FINISHED, {}).get("state") == "SUCCESS", "Flower knows the task")
    page.goto(f"{flower.url}/tasks")
    row = page.locator("tr", has_text=FINISHED)
    expect(row).to_contain_text("SUCCESS")
    page.goto(f"{flower.url}/task/{FINISHED}")
    expect(page.locator("body")).to_contain_text(worker.name)
    expect(page.locator("body")).to_contain_text("SUCCESS")


def test_depth_of_queues_is_shown(stack: tuple[Grid, Worker, Flower], page: Page, aws_url: str) -> None:
    """The broker page shows how many messages wait in SQS, in a queue that no worker consumes."""
    made, _, flower = stack
    client, url = aws_client("sqs", aws_url), resolve("cpp", made.settings)
    for _ in range(WAITING):
        client.send_message(QueueUrl=url, MessageBody="{}")
    page.goto(f"{flower.url}/broker")
    expect(page.locator("#cpp td").nth(3)).to_have_text(str(WAITING))
    expect(page.locator("#cpp td").nth(4)).to_have_text("0")
    expect(page.locator(".broker-url")).to_have_text(f"sqs://{aws_url.removeprefix('http://')}")


def test_pool_grows_by_a_click(stack: tuple[Grid, Worker, Flower], page: Page) -> None:
    """The control buttons of a worker's page work without a password on loopback."""
    made, worker, flower = stack
    page.goto(f"{flower.url}/worker/{worker.name}")
    with page.expect_response(lambda response: "/api/worker/pool/grow/" in response.url) as answer:
        page.locator("#worker-pool-grow").click()
    assert answer.value.status == 200

    def children() -> int:
        stats = made.app.control.inspect(timeout=5.0, destination=[worker.name]).stats()
        return len(stats[worker.name]["pool"]["processes"])

    wait_until(lambda: children() == 3, "a child has come")
