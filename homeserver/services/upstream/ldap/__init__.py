"""Directories: LDAP and Active Directory. spec: RFC 4511, RFC 4515"""
