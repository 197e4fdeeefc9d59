"""LDAP directories, including Active Directory. spec: RFC 4511, RFC 4515"""
