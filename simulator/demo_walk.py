"""The demo's walk: a seller sets up shop, an order comes in, is printed, told of, and goes back to Etsy as shipped."""

from __future__ import annotations

from simulator import demo_judges as judges
from simulator.demo_checks import CheckList
from simulator.demo_goods import NEXT_BUYER, NEXT_RECEIPT_ID, VASE
from simulator.demo_order import await_prints, bring_in_order, release_prints
from simulator.demo_screen import Screen
from simulator.demo_seller import EMAIL, Seller
from simulator.demo_setup import add_printers, build_stage, look_at_filament, set_up_shop
from simulator.demo_ship import ship_order
from simulator.demo_show import Show
from simulator.demo_stage import Stage
from simulator.demo_watch import Lane, Watch, subject_of


class Walk:
    """One play through. `play()` may be called once; what was seen is in the check list, whatever happens."""

    def __init__(self, stage: Stage, screen: Screen, checks: CheckList) -> None:
        self._show = Show(stage, screen, checks, Seller(stage))
        self._sha256: dict[int, str] = {}

    def play(self) -> None:
        """Raises DemoFailed, Interrupted."""
        show = self._show
        build_stage(show)
        self._sha256 = set_up_shop(show)
        add_printers(show)
        look_at_filament(show)
        order_id = bring_in_order(show)
        lanes = await_prints(show, order_id)
        watch = Watch(show.stage, show.seller, show.screen, lanes, order_id)
        # Before the release: the first start may be quicker than the first look at the printers.
        watch.look_at_order()
        release_prints(show, lanes)
        show.screen.open_phase("The printers at work, in fast time")
        watch.run()
        given_up = [lane.gave_up for lane in lanes if lane.gave_up]
        show.checks.reasons += given_up
        self._read_the_messages(lanes)
        self._judge(lanes, order_id, watch.order_statuses)
        if not given_up:
            ship_order(show, order_id)
        judges.judge_secrets(show.checks, show.stage, show.seller.token)

    def add_another_order(self) -> None:
        """A second order waits at Etsy for whoever tries the API by hand."""
        self._show.stage.receive_order(NEXT_RECEIPT_ID, [VASE.line], NEXT_BUYER)

    def _read_the_messages(self, lanes: list[Lane]) -> None:
        """A mail and a webhook for each start and each end; waited for, unless a print gave up."""
        stage, screen = self._show.stage, self._show.screen
        due = 2 * sum(len(lane.print_ids) for lane in lanes)
        mails = stage.mail.messages

        def have_come() -> bool:
            return min(len(mails), sum(len(post.receiver.received) for post in stage.posts)) >= due

        if not any(lane.gave_up for lane in lanes):
            stage.wait_until(have_come)
        screen.open_phase("What the seller was told")
        screen.tell(f"{len(mails)} e-mails to {EMAIL}")
        for mail in mails[-1:]:
            screen.tell(f"  the last one: {subject_of(mail)}")
        for post in stage.posts:
            received = post.receiver.received
            verified = sum(each.verified for each in received)
            screen.tell(f"{len(received)} webhooks of {post.name}, the signatures of {verified} hold")

    def _judge(self, lanes: list[Lane], order_id: int, order_statuses: list[str]) -> None:
        seller, checks = self._show.seller, self._show.checks
        prints = {each["id"]: each for each in seller.find_prints(order_id)}
        events = {
            print_id: seller.get(f"/api/bambu/scheduled-prints/{print_id}/events")
            for lane in lanes
            for print_id in lane.print_ids
        }
        spools = {
            lane.post.name: seller.get(f"/api/bambu/materials/{lane.post.printer_id}", include="removed")
            for lane in lanes
        }
        due_files = {print_id: self._sha256[each["print_file_id"]] for print_id, each in prints.items()}
        judges.judge_uploads(checks, lanes, due_files)
        judges.judge_starts(checks, lanes)
        judges.judge_reports(checks, lanes)
        judges.judge_moves(checks, lanes, events)
        judges.judge_filament(checks, lanes, prints, spools)
        judges.judge_order(checks, seller.get(f"/api/orders/{order_id}"), order_statuses)
        judges.judge_mails(checks, lanes, self._show.stage.mail.messages)
        judges.judge_webhooks(checks, lanes)
