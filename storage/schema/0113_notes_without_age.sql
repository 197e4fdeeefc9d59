-- Each message would pay for it; who forgets old notes goes through all of them.
DROP INDEX sent_transactions_by_age;
