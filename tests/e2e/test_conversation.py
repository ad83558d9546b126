"""Upgrades over the public API on the offline model: conversations, events and idempotency."""

import pytest

from tests.running_stack import RunningStack

pytestmark = pytest.mark.xdist_group("offline stack")

HEADINGS = ("ROLE", "TASK", "CONTEXT", "CONSTRAINTS", "FORMAT")


async def upgrade(stack: RunningStack, prompt: str, *history: tuple[str, str], **options: object) -> dict[str, object]:
    async with stack.client() as client:
        body = {
            "userPrompt": prompt,
            "conversationHistory": [{"role": role, "content": content} for role, content in history],
            "options": options,
        }
        answer = await client.post("/api/upgrade", json=body, headers={"Prefer": "wait=30"})
        assert answer.status_code == 200, answer.text
        upgraded: dict[str, object] = answer.json()
        assert upgraded["status"] == "upgraded", upgraded
        return upgraded


async def test_three_turns_in_english(offline_stack: RunningStack) -> None:
    first = "Explain how DNS resolution works, with an example for example.org, in at most 300 words"
    one = await upgrade(offline_stack, first)
    assert one["mode"] == "full"
    assert one["language"] == "en"
    assert all(heading in str(one["upgradedPrompt"]) for heading in HEADINGS)
    assert "300" in str(one["upgradedPrompt"])
    assert "offline_model" in [warning["code"] for warning in one["warnings"]]  # type: ignore[attr-defined]

    history = [("user", first), ("assistant", "DNS resolution turns a name such as example.org into an address. …")]
    two = await upgrade(offline_stack, "make it shorter and for beginners", *history)
    assert two["mode"] == "contextual"
    text = str(two["upgradedPrompt"])
    assert "DNS" in text, text
    assert "beginner" in text.lower(), text
    assert "CONSTRAINTS" not in text
    assert len(text) < len(str(one["upgradedPrompt"]))

    history += [("user", "make it shorter and for beginners"), ("assistant", "DNS is the phone book of the Internet.")]
    three = await upgrade(
        offline_stack, "Write a cover letter for a nurse who applies to a children's hospital", *history
    )
    assert three["mode"] == "full"
    assert "DNS" not in str(three["upgradedPrompt"])


async def test_three_turns_in_vietnamese(offline_stack: RunningStack) -> None:
    first = "Viết một bài giới thiệu về cà phê Việt Nam cho du khách, khoảng 200 từ"
    one = await upgrade(offline_stack, first)
    assert (one["mode"], one["language"]) == ("full", "vi")
    history = [("user", first), ("assistant", "Cà phê Việt Nam nổi tiếng với hương vị đậm đà.")]
    two = await upgrade(offline_stack, "ngắn hơn và cho người mới bắt đầu", *history)
    assert (two["mode"], two["language"]) == ("contextual", "vi")
    assert "cà phê" in str(two["upgradedPrompt"]).lower()
    history += [("user", "ngắn hơn và cho người mới bắt đầu"), ("assistant", "Cà phê Việt Nam rất đậm.")]
    three = await upgrade(offline_stack, "Hãy giải thích cách tính thuế thu nhập cá nhân cho người lao động", *history)
    assert (three["mode"], three["language"]) == ("full", "vi")
    assert "cà phê" not in str(three["upgradedPrompt"]).lower()


async def test_a_client_that_does_not_wait_follows_the_events(offline_stack: RunningStack) -> None:
    async with offline_stack.client() as client:
        body = {
            "userPrompt": "and for Linux?",
            "conversationHistory": [{"role": "user", "content": "How do I list open ports on Windows?"}],
        }
        accepted = await client.post("/api/upgrade", json=body, headers={"Prefer": "respond-async"})
        assert accepted.status_code == 202
        assert accepted.headers["Preference-Applied"] == "respond-async"
        location = accepted.headers["Location"]
        events, ids = [], []
        async with client.stream("GET", f"{location}/events") as stream:
            async for line in stream.aiter_lines():
                if line.startswith("event:"):
                    events.append(line.split(":", 1)[1].strip())
                if line.startswith("id:"):
                    ids.append(line.split(":", 1)[1].strip())
        assert events[0] == "accepted"
        assert events[-1] == "completed"
        assert "stage" in events
        resumed = []
        async with client.stream("GET", f"{location}/events", headers={"Last-Event-ID": ids[-2]}) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("event:"):
                    resumed.append(line.split(":", 1)[1].strip())
        assert resumed == ["completed"]
        assert (await client.get(location)).json()["status"] == "upgraded"


async def test_the_same_key_and_body_give_the_same_upgrade_at_no_cost(offline_stack: RunningStack) -> None:
    async with offline_stack.client(headers={"Idempotency-Key": "conversation-1"}) as client:
        first = await client.post("/api/upgrade", json={"userPrompt": "Plan a week in Hanoi"})
        again = await client.post("/api/upgrade", json={"userPrompt": "Plan a week in Hanoi"})
        other = await client.post("/api/upgrade", json={"userPrompt": "Plan a week in Huế"})
    assert first.json() == again.json()
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
