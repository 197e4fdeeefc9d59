"""Metrics under their former names, which work for one release."""

from prometheus_client import CollectorRegistry, generate_latest

from homeserver.observe.federation import FederationMetrics
from homeserver.observe.metrics import MailMetrics
from homeserver.observe.sender import DESTINATIONS, SENT, SenderMetrics


def test_a_counter_has_its_former_name_and_label_values() -> None:
    registry = CollectorRegistry()
    emails = MailMetrics(registry)
    emails.count("dropped")
    emails.count("sent")
    values = {
        (name, outcome): registry.get_sample_value(name, {"outcome": outcome})
        for name in ("mahalla_emails_total", "mahalla_letters_total")
        for outcome in ("sent", "dropped", "given_up")
    }
    assert values == {
        ("mahalla_emails_total", "sent"): 1,
        ("mahalla_emails_total", "dropped"): 1,
        ("mahalla_emails_total", "given_up"): None,
        ("mahalla_letters_total", "sent"): 1,
        ("mahalla_letters_total", "dropped"): None,
        ("mahalla_letters_total", "given_up"): 1,
    }


def test_metrics_of_the_sender_have_their_former_names() -> None:
    registry = CollectorRegistry()
    numbers = {name: at for at, name in enumerate((*SENT, *DESTINATIONS))}
    SenderMetrics(registry=registry, read=lambda: numbers)
    prefix = "mahalla_federation_"
    for current, former in (
        ("sent_dropped_total", "sent_given_up_total"),
        ("destinations_catching_up", "destinations_behind"),
        ("destinations_rate_limiting", "destinations_asked_to_wait"),
    ):
        value = registry.get_sample_value(prefix + current)
        assert value == registry.get_sample_value(prefix + former) is not None


def test_the_help_of_a_former_name_names_the_current_one() -> None:
    registry = CollectorRegistry()
    MailMetrics(registry)
    page = generate_latest(registry).decode()
    assert "# HELP mahalla_letters_total Former name of mahalla_emails_total;" in page
    assert "# TYPE mahalla_letters_total counter" in page


def test_a_former_label_is_beside_the_current_one() -> None:
    registry = CollectorRegistry()
    federation = FederationMetrics(registry)
    federation.pdu_received("accept")
    federation.pdu_received("expired")
    name = "mahalla_federation_pdus_total"
    for labels in (
        {"result": "accept", "verdict": "accept"},
        {"result": "expired", "verdict": "given_up"},
    ):
        assert registry.get_sample_value(name, labels) == 1
