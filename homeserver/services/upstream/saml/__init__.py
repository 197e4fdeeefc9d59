"""Sign-in with SAML 2.0, and logout. spec: SAML 2.0 Core and Bindings"""
