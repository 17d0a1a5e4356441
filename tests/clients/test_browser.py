"""examples/browser in Debian's Chromium, from another origin than the service.

`make browser` builds the page where npm is; Chromium comes with `apt-get install chromium-driver`.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.rpc.tokens.local_key import LocalSigningKey
from service.scopes import Scope
from tests.harness.chromium import CHROMEDRIVER, CHROMIUM, Page, Site, chromium
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client

EXAMPLE = Path(__file__).parents[2] / "examples/browser"
SALES = {Scope.CREATE, Scope.READ, Scope.UNMASK_PHONE, Scope.UNMASK_EMAIL}

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER and (EXAMPLE / "dist/page.js").exists()),
    reason="no page (`make browser`) or no Chromium (`apt-get install chromium-driver`)",
)
PROTOCOLS = pytest.mark.parametrize("protocol", ["connect", "grpc-web"])

REASON = "কল ব্যাক: দাম জানতে চান, ¿sí?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page as a web server delivers it; `service` writes its address into it."""
    made = tmp_path_factory.mktemp("site")
    (made / "dist").mkdir()
    for name in ("page.css", "dist/page.js"):
        shutil.copy(EXAMPLE / name, made / name)
    return made


@pytest.fixture(scope="module")
def sites(folder: Path) -> Iterator[tuple[Site, Site]]:
    """The page at two origins: the first is listed, the second is not."""
    made = Site(folder), Site(folder)
    yield made
    for site in made:
        site.close()


@pytest.fixture(scope="module")
def service(
    service_database: TestDatabase, sites: tuple[Site, Site], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    with socket.socket() as placeholder:
        # Bound and never listening, it keeps the page's address for the service while that restarts.
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        placeholder.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{placeholder.getsockname()[1]}"
        page = (EXAMPLE / "index.html").read_text()
        assert page.count("127.0.0.1:8080") == 2
        (folder / "index.html").write_text(page.replace("127.0.0.1:8080", address))
        running = RunningService(
            tmp_path_factory.mktemp("service") / "leadkeep",
            database_url=service_database.serve_url,
            settings={
                "LEADKEEP_HTTP_ADDRESS": address,
                "LEADKEEP_ALLOWED_ORIGINS": f"https://sales.example {sites[0].origin}",
            },
        ).start()
        yield running
        running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture
def page(service: RunningService, sites: tuple[Site, Site], browser: Page) -> Page:
    """The page at the listed origin, signed in as somebody who may save leads and show phone and e-mail."""
    browser.open(sites[0].origin)
    sign_in(browser, service.token(subject="mina", scopes=SALES))
    return browser


def sign_in(page: Page, token: str) -> None:
    page.run("sessionStorage.setItem('leadkeep-token', arguments[0])", token)


def calls(service: RunningService) -> int:
    """How many calls have passed the chain."""
    lines = httpx.get(f"{service.http_url}/metrics", timeout=10).text.splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("leadkeep_calls_total{"))


def enter(page: Page, lead: pb.Lead) -> None:
    names = ("name", "phone", "nid", "address", "interested_policy", "email")
    page.enter({f"#lead [name={name}]": getattr(lead, name) for name in names})


def count_of(service: RunningService, lead: pb.Lead) -> int:
    """How many leads have this name."""
    with service.channel() as channel:
        return len(Client(service, channel).list_leads(name_prefix=lead.name).leads)


@PROTOCOLS
def test_a_lead_is_saved_listed_and_shown_for_a_reason(
    service: RunningService, page: Page, admin: Client, protocol: str
) -> None:
    page.run("sessionStorage.clear()")
    token = service.token(subject=f"mina by {protocol}", scopes=SALES)
    lead = somebody(name=f"<b>Mina</b> by {protocol}")
    page.choose("#protocol", protocol)

    enter(page, lead)
    page.click("#save")
    page.enter({"#sign-in[open] [name=token]": token})
    page.click("#sign-in button[value=ok]")
    reference = page.wait_for_text("#status", "Saved as LK-").removeprefix("Saved as ").removesuffix(".")

    page.click("#refresh")
    page.wait_for_text("#rows", reference)
    # The newest comes first. What was entered is text, not HTML.
    shown = page.run("return [...document.querySelectorAll('#rows tr:first-child td')].map((each) => each.textContent)")
    assert shown[:2] == [reference, lead.name]
    assert lead.phone not in shown
    assert page.run("return document.querySelector('#rows b')") is None

    page.click("#rows tr:first-child button")
    page.choose("#reveal[open] select", "phone")
    page.enter({"#reveal[open] [name=reason]": REASON})
    page.click("#reveal button[value=ok]")
    page.wait_for_text("#rows tr:first-child", lead.phone.replace("+", r"\+"))
    assert lead.email not in page.text("#rows")
    [entry] = admin.call("ListAccesses", pb.ListAccessesRequest(subject=f"mina by {protocol}")).accesses
    assert (entry.operation, [*entry.fields], entry.reason) == ("GetLead", ["phone"], REASON)
    assert_nothing_is_logged(page, lead, token)


@PROTOCOLS
def test_errors_are_shown_with_their_reason_and_the_name_of_the_call(
    service: RunningService, page: Page, admin: Client, protocol: str
) -> None:
    known = somebody()
    admin.create(known)
    page.choose("#protocol", protocol)

    enter(page, known)
    page.click("#save")
    page.wait_for_text("#problem", r"DUPLICATE_PHONE: .*Call [0-9a-f-]{36}")

    page.run("document.querySelector('#lead').reset()")
    enter(page, somebody(phone="12"))
    page.click("#save")
    page.wait_for_text("#problem", "LEAD_INVALID: .*phone: ")
    assert page.run("return [...document.querySelectorAll('[aria-invalid]')].map((each) => each.name)") == ["phone"]

    page.click("#refresh")
    page.wait_for_text("#status", r"\d leads?\.")
    page.click("#rows tr:first-child button")
    page.choose("#reveal[open] select", "nid")
    page.enter({"#reveal[open] [name=reason]": REASON})
    page.click("#reveal button[value=ok]")
    page.wait_for_text("#problem", "SCOPE_MISSING: .*Call ")
    assert_nothing_is_logged(page, known, service.token(subject="mina", scopes=SALES))


@PROTOCOLS
def test_a_page_of_an_origin_that_is_not_listed_fails_at_its_preflight(
    service: RunningService, sites: tuple[Site, Site], browser: Page, protocol: str
) -> None:
    def calls_of_a_list(site: Site, outcome: str) -> int:
        before = calls(service)
        browser.open(site.origin)
        sign_in(browser, service.token())
        browser.choose("#protocol", protocol)
        browser.log("performance")
        browser.click("#refresh")
        browser.wait_for_text("#status", outcome)
        return calls(service) - before

    assert calls_of_a_list(sites[0], r"\d leads?\.") == 1
    assert calls_of_a_list(sites[1], "trying again") == 0
    failures = [each["params"] for each in browser.log("performance") if each["method"] == "Network.loadingFailed"]
    assert {each["corsErrorStatus"]["corsError"] for each in failures} == {"PreflightMissingAllowOriginHeader"}


@PROTOCOLS
def test_a_lead_is_saved_once_though_the_service_restarts(service: RunningService, page: Page, protocol: str) -> None:
    lead = somebody(name=f"Restart by {protocol}")
    page.choose("#protocol", protocol)
    enter(page, lead)
    service.kill()
    page.click("#save")
    page.wait_for_text("#status", "trying again")
    service.start()
    while not page.wait_for_text("main", "Saved as LK-|There is no answer").count("Saved as LK-"):
        # It took longer than a call's deadline. The same content is sent under the same id.
        page.click("#save")
        page.wait_for_text("#status", "One moment|trying again|Saved as LK-")
    assert count_of(service, lead) == 1


@PROTOCOLS
def test_a_lead_is_saved_once_though_an_answer_is_lost(service: RunningService, page: Page, protocol: str) -> None:
    lead = somebody(name=f"Lost by {protocol}")
    page.choose("#protocol", protocol)
    enter(page, lead)
    page.run(
        """
        const real = window.fetch;
        window.fetch = async (...request) => {
          window.fetch = real;
          await real(...request);
          throw new TypeError("Failed to fetch");
        };
        """
    )
    page.click("#save")
    page.wait_for_text("#status", "Saved as LK-")
    assert page.text("#problem") == ""
    assert count_of(service, lead) == 1


def test_an_expired_token_is_renewed_and_the_lead_saved_once(service: RunningService, page: Page) -> None:
    lead = somebody(name="Renewed")
    key = LocalSigningKey.load_or_create(service.data_dir / "signing-key.pem")
    sign_in(page, key.issue("mina", SALES, timedelta(seconds=1), now=time.time() - 60))
    enter(page, lead)
    page.click("#save")
    page.enter({"#sign-in[open] [name=token]": service.token(subject="mina", scopes=SALES)})
    page.click("#sign-in button[value=ok]")
    page.wait_for_text("#status", "Saved as LK-")
    assert count_of(service, lead) == 1


def assert_nothing_is_logged(page: Page, lead: pb.Lead, token: str) -> None:
    """The page writes nothing to the console, where Chromium itself names the URLs of what failed."""
    entries = page.log("browser")
    assert [each for each in entries if each["source"] not in ("network", "recommendation")] == []
    values = (lead.name, lead.phone, lead.nid, lead.address, lead.email, token)
    assert [value for value in values if value in str(entries)] == []
