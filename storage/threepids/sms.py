"""The number of text messages sent on each day, to limit their costs."""

from storage.engine.transaction import WriteTransaction


class TextMessageStore:
    """The table `sms_counts`."""

    def count_message(self, txn: WriteTransaction, day: int, max_messages: int) -> bool:
        """Count a message, and delete earlier days; return False if the maximum is reached.

        `day`: days since 1970. `max_messages`: the maximum per day.
        """
        txn.execute("DELETE FROM sms_counts WHERE day < ?", (day,))
        sql = (
            "INSERT INTO sms_counts (day, messages) VALUES (?, 1) ON CONFLICT (day)"
            " DO UPDATE SET messages = sms_counts.messages + 1"
            " WHERE sms_counts.messages < ?"
        )
        return bool(txn.execute(sql, (day, max_messages)))
