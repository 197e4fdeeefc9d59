"""Puts together the pages for people."""

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from homeserver.assembly.accounts import AccountParts
from homeserver.assembly.mail import MailParts
from homeserver.assembly.oauth import OAuthParts
from homeserver.assembly.people import PeopleParts
from homeserver.assembly.rooms import RoomParts
from homeserver.config.whole import Config
from homeserver.jobs import Job
from homeserver.services.browser_sessions import BrowserSessions
from homeserver.services.cookies import Cookies
from homeserver.services.own_account import OwnAccount
from homeserver.services.sign_in_choices import SignInChoices
from homeserver.services.upstream.buttons import UpstreamButtons
from homeserver.services.upstream.devices import UpstreamDevices
from homeserver.web.account import AccountPage
from homeserver.web.authorize import ConsentPage
from homeserver.web.forms import Forms
from homeserver.web.landing import LandingPage
from homeserver.web.link import LinkPage
from homeserver.web.pages import Pages
from homeserver.web.register import RegisterPage
from homeserver.web.reset_password import ResetPasswordPage
from homeserver.web.sign_in import SignInPage
from storage.account_data import AccountDataStore
from storage.database import Database


class WebParts:
    """The pages, and who is signed in to them."""

    def __init__(
        self,
        config: Config,
        clock: IReactorTime,
        database: Database,
        accounts: AccountParts,
        mail: MailParts,
        oauth: OAuthParts,
        people: PeopleParts,
        rooms: RoomParts,
    ) -> None:
        base_url = config.name.public_baseurl or ""
        self._audit = accounts.audit
        self.cookies = Cookies(config.name.public_baseurl)
        self.pages = Pages(mail.languages, config.server_name)
        self.forms = Forms(self.cookies, accounts.secret_text)
        self.sessions = BrowserSessions(clock, database, accounts.browser_store, accounts.secret_text, self.cookies)
        devices = UpstreamDevices(database, accounts.upstream_sessions)
        buttons = UpstreamButtons(config.upstream.buttons)
        sign_in_page = SignInPage(
            self.pages,
            self.forms,
            accounts.sign_in,
            accounts.registration,
            SignInChoices([buttons]),
            resets_passwords=mail.outbox is not None,
        )
        landing = LandingPage(
            self.pages,
            mail.languages,
            config.name.public_baseurl,
            registration_open=config.registration.enable_registration,
            web_client=config.name.web_client_location,
        )
        self.services: Sequence[object] = (
            self.pages,
            self.forms,
            self.sessions,
            sign_in_page,
            landing,
            RegisterPage(
                self.pages,
                self.forms,
                self.sessions,
                accounts.registration,
                mail.validation,
                accounts.secret_text,
                base_url=base_url,
            ),
            ConsentPage(self.pages, self.forms, self.sessions, oauth.authorization, oauth.metadata, devices),
            AccountPage(
                self.pages,
                self.forms,
                self.sessions,
                OwnAccount(
                    clock,
                    database,
                    people.accounts,
                    accounts.sign_in,
                    accounts.sessions,
                    accounts.device_store,
                    accounts.oauth_store,
                    oauth.clients,
                    rooms.profiles,
                    people.threepids,
                    people.deactivation,
                    AccountDataStore(database),
                    rooms.room_memberships,
                ),
                accounts.audit,
                accounts.resets,
                people.threepids,
                mail.validation,
                accounts.secret_text,
                base_url=base_url,
            ),
            ResetPasswordPage(
                self.pages, self.forms, people.accounts, mail.validation, accounts.secret_text, base_url=base_url
            ),
            LinkPage(self.pages, self.forms, self.sessions, oauth.device_grants, oauth.metadata, devices),
        )
        """For the router."""

    def jobs(self) -> Sequence[Job]:
        """What is done unasked."""
        return (
            Job("end_old_browser_sessions", self.sessions.do_sweep, 600.0),
            Job("forget_audit_records", self._audit.do_sweep, 3600.0),
        )
