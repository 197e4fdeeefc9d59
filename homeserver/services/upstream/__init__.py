"""Sign-in with identity providers (OpenID Connect, SAML, CAS, JWT), LDAP directories and
plug-ins."""
