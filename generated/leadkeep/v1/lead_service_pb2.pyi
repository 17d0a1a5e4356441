from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from leadkeep.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LeadStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEAD_STATUS_UNSPECIFIED: _ClassVar[LeadStatus]
    LEAD_STATUS_NEW: _ClassVar[LeadStatus]
    LEAD_STATUS_CONTACTED: _ClassVar[LeadStatus]
    LEAD_STATUS_CONVERTED: _ClassVar[LeadStatus]
    LEAD_STATUS_NOT_INTERESTED: _ClassVar[LeadStatus]

class LeadView(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEAD_VIEW_UNSPECIFIED: _ClassVar[LeadView]
    LEAD_VIEW_MASKED: _ClassVar[LeadView]
    LEAD_VIEW_FULL: _ClassVar[LeadView]

class LeadOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEAD_ORDER_UNSPECIFIED: _ClassVar[LeadOrder]
    LEAD_ORDER_CREATED_ASC: _ClassVar[LeadOrder]
    LEAD_ORDER_UPDATED_DESC: _ClassVar[LeadOrder]
    LEAD_ORDER_UPDATED_ASC: _ClassVar[LeadOrder]
    LEAD_ORDER_RESUBMITTED_DESC: _ClassVar[LeadOrder]
    LEAD_ORDER_RESUBMITTED_ASC: _ClassVar[LeadOrder]

class SaveState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAVE_STATE_UNSPECIFIED: _ClassVar[SaveState]
    SAVE_STATE_SAVED: _ClassVar[SaveState]
    SAVE_STATE_DELAYED: _ClassVar[SaveState]

class LeadGroup(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEAD_GROUP_UNSPECIFIED: _ClassVar[LeadGroup]
    LEAD_GROUP_STATUS: _ClassVar[LeadGroup]
    LEAD_GROUP_POLICY: _ClassVar[LeadGroup]
    LEAD_GROUP_SOURCE: _ClassVar[LeadGroup]
    LEAD_GROUP_ASSIGNEE: _ClassVar[LeadGroup]
    LEAD_GROUP_DAY: _ClassVar[LeadGroup]

class LeadEventType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEAD_EVENT_TYPE_UNSPECIFIED: _ClassVar[LeadEventType]
    LEAD_EVENT_TYPE_CREATED: _ClassVar[LeadEventType]
    LEAD_EVENT_TYPE_CORRECTED: _ClassVar[LeadEventType]
    LEAD_EVENT_TYPE_STATUS_CHANGED: _ClassVar[LeadEventType]
    LEAD_EVENT_TYPE_ASSIGNED: _ClassVar[LeadEventType]
    LEAD_EVENT_TYPE_RESUBMITTED: _ClassVar[LeadEventType]
    LEAD_EVENT_TYPE_CONFLICT_DECIDED: _ClassVar[LeadEventType]
    LEAD_EVENT_TYPE_ERASED: _ClassVar[LeadEventType]
    LEAD_EVENT_TYPE_REVEALED: _ClassVar[LeadEventType]

class ConflictResolution(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONFLICT_RESOLUTION_UNSPECIFIED: _ClassVar[ConflictResolution]
    CONFLICT_RESOLUTION_KEEP_FIRST: _ClassVar[ConflictResolution]
    CONFLICT_RESOLUTION_TAKE_NEW: _ClassVar[ConflictResolution]
    CONFLICT_RESOLUTION_OWN_LEAD: _ClassVar[ConflictResolution]

class PersonMatchKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PERSON_MATCH_KIND_UNSPECIFIED: _ClassVar[PersonMatchKind]
    PERSON_MATCH_KIND_LEAD: _ClassVar[PersonMatchKind]
    PERSON_MATCH_KIND_RESUBMISSION: _ClassVar[PersonMatchKind]
    PERSON_MATCH_KIND_CONFLICT: _ClassVar[PersonMatchKind]
    PERSON_MATCH_KIND_WAITING: _ClassVar[PersonMatchKind]

class PersonPart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PERSON_PART_UNSPECIFIED: _ClassVar[PersonPart]
    PERSON_PART_CHOSEN: _ClassVar[PersonPart]
    PERSON_PART_SAME_PERSON: _ClassVar[PersonPart]
    PERSON_PART_HISTORY: _ClassVar[PersonPart]
LEAD_STATUS_UNSPECIFIED: LeadStatus
LEAD_STATUS_NEW: LeadStatus
LEAD_STATUS_CONTACTED: LeadStatus
LEAD_STATUS_CONVERTED: LeadStatus
LEAD_STATUS_NOT_INTERESTED: LeadStatus
LEAD_VIEW_UNSPECIFIED: LeadView
LEAD_VIEW_MASKED: LeadView
LEAD_VIEW_FULL: LeadView
LEAD_ORDER_UNSPECIFIED: LeadOrder
LEAD_ORDER_CREATED_ASC: LeadOrder
LEAD_ORDER_UPDATED_DESC: LeadOrder
LEAD_ORDER_UPDATED_ASC: LeadOrder
LEAD_ORDER_RESUBMITTED_DESC: LeadOrder
LEAD_ORDER_RESUBMITTED_ASC: LeadOrder
SAVE_STATE_UNSPECIFIED: SaveState
SAVE_STATE_SAVED: SaveState
SAVE_STATE_DELAYED: SaveState
LEAD_GROUP_UNSPECIFIED: LeadGroup
LEAD_GROUP_STATUS: LeadGroup
LEAD_GROUP_POLICY: LeadGroup
LEAD_GROUP_SOURCE: LeadGroup
LEAD_GROUP_ASSIGNEE: LeadGroup
LEAD_GROUP_DAY: LeadGroup
LEAD_EVENT_TYPE_UNSPECIFIED: LeadEventType
LEAD_EVENT_TYPE_CREATED: LeadEventType
LEAD_EVENT_TYPE_CORRECTED: LeadEventType
LEAD_EVENT_TYPE_STATUS_CHANGED: LeadEventType
LEAD_EVENT_TYPE_ASSIGNED: LeadEventType
LEAD_EVENT_TYPE_RESUBMITTED: LeadEventType
LEAD_EVENT_TYPE_CONFLICT_DECIDED: LeadEventType
LEAD_EVENT_TYPE_ERASED: LeadEventType
LEAD_EVENT_TYPE_REVEALED: LeadEventType
CONFLICT_RESOLUTION_UNSPECIFIED: ConflictResolution
CONFLICT_RESOLUTION_KEEP_FIRST: ConflictResolution
CONFLICT_RESOLUTION_TAKE_NEW: ConflictResolution
CONFLICT_RESOLUTION_OWN_LEAD: ConflictResolution
PERSON_MATCH_KIND_UNSPECIFIED: PersonMatchKind
PERSON_MATCH_KIND_LEAD: PersonMatchKind
PERSON_MATCH_KIND_RESUBMISSION: PersonMatchKind
PERSON_MATCH_KIND_CONFLICT: PersonMatchKind
PERSON_MATCH_KIND_WAITING: PersonMatchKind
PERSON_PART_UNSPECIFIED: PersonPart
PERSON_PART_CHOSEN: PersonPart
PERSON_PART_SAME_PERSON: PersonPart
PERSON_PART_HISTORY: PersonPart

class Lead(_message.Message):
    __slots__ = ("id", "name", "phone", "nid", "address", "interested_policy", "email", "preferred_contact_time", "notes", "conversation_id", "status", "created_at", "updated_at", "version", "assignee", "masked", "transcript_uri", "resubmissions", "unreadable_fields", "source", "reference", "created_by", "masked_fields")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PHONE_FIELD_NUMBER: _ClassVar[int]
    NID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INTERESTED_POLICY_FIELD_NUMBER: _ClassVar[int]
    EMAIL_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_CONTACT_TIME_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ASSIGNEE_FIELD_NUMBER: _ClassVar[int]
    MASKED_FIELD_NUMBER: _ClassVar[int]
    TRANSCRIPT_URI_FIELD_NUMBER: _ClassVar[int]
    RESUBMISSIONS_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELDS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    MASKED_FIELDS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    phone: str
    nid: str
    address: str
    interested_policy: str
    email: str
    preferred_contact_time: str
    notes: str
    conversation_id: str
    status: LeadStatus
    created_at: _timestamp_pb2.Timestamp
    updated_at: _timestamp_pb2.Timestamp
    version: int
    assignee: str
    masked: bool
    transcript_uri: str
    resubmissions: int
    unreadable_fields: _containers.RepeatedScalarFieldContainer[str]
    source: str
    reference: str
    created_by: str
    masked_fields: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., phone: _Optional[str] = ..., nid: _Optional[str] = ..., address: _Optional[str] = ..., interested_policy: _Optional[str] = ..., email: _Optional[str] = ..., preferred_contact_time: _Optional[str] = ..., notes: _Optional[str] = ..., conversation_id: _Optional[str] = ..., status: _Optional[_Union[LeadStatus, str]] = ..., created_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., updated_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., version: _Optional[int] = ..., assignee: _Optional[str] = ..., masked: bool = ..., transcript_uri: _Optional[str] = ..., resubmissions: _Optional[int] = ..., unreadable_fields: _Optional[_Iterable[str]] = ..., source: _Optional[str] = ..., reference: _Optional[str] = ..., created_by: _Optional[str] = ..., masked_fields: _Optional[_Iterable[str]] = ...) -> None: ...

class Confirmation(_message.Message):
    __slots__ = ("text", "next_steps", "reference", "locale")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEPS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    text: str
    next_steps: _containers.RepeatedScalarFieldContainer[str]
    reference: str
    locale: str
    def __init__(self, text: _Optional[str] = ..., next_steps: _Optional[_Iterable[str]] = ..., reference: _Optional[str] = ..., locale: _Optional[str] = ...) -> None: ...

class CreateLeadRequest(_message.Message):
    __slots__ = ("lead", "request_id", "locale", "phone_region")
    LEAD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    PHONE_REGION_FIELD_NUMBER: _ClassVar[int]
    lead: Lead
    request_id: str
    locale: str
    phone_region: str
    def __init__(self, lead: _Optional[_Union[Lead, _Mapping]] = ..., request_id: _Optional[str] = ..., locale: _Optional[str] = ..., phone_region: _Optional[str] = ...) -> None: ...

class CreateLeadResponse(_message.Message):
    __slots__ = ("id", "message", "state", "confirmation", "lead", "ignored_fields", "is_repeat")
    ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CONFIRMATION_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    IGNORED_FIELDS_FIELD_NUMBER: _ClassVar[int]
    IS_REPEAT_FIELD_NUMBER: _ClassVar[int]
    id: str
    message: str
    state: SaveState
    confirmation: Confirmation
    lead: Lead
    ignored_fields: _containers.RepeatedScalarFieldContainer[str]
    is_repeat: bool
    def __init__(self, id: _Optional[str] = ..., message: _Optional[str] = ..., state: _Optional[_Union[SaveState, str]] = ..., confirmation: _Optional[_Union[Confirmation, _Mapping]] = ..., lead: _Optional[_Union[Lead, _Mapping]] = ..., ignored_fields: _Optional[_Iterable[str]] = ..., is_repeat: bool = ...) -> None: ...

class ValidateLeadRequest(_message.Message):
    __slots__ = ("lead", "locale", "phone_region")
    LEAD_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    PHONE_REGION_FIELD_NUMBER: _ClassVar[int]
    lead: Lead
    locale: str
    phone_region: str
    def __init__(self, lead: _Optional[_Union[Lead, _Mapping]] = ..., locale: _Optional[str] = ..., phone_region: _Optional[str] = ...) -> None: ...

class Violation(_message.Message):
    __slots__ = ("field", "reason", "text")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    field: str
    reason: str
    text: str
    def __init__(self, field: _Optional[str] = ..., reason: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class ValidateLeadResponse(_message.Message):
    __slots__ = ("violations", "ignored_fields")
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    IGNORED_FIELDS_FIELD_NUMBER: _ClassVar[int]
    violations: _containers.RepeatedCompositeFieldContainer[Violation]
    ignored_fields: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, violations: _Optional[_Iterable[_Union[Violation, _Mapping]]] = ..., ignored_fields: _Optional[_Iterable[str]] = ...) -> None: ...

class GetLeadRequest(_message.Message):
    __slots__ = ("id", "view", "reveal")
    ID_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    REVEAL_FIELD_NUMBER: _ClassVar[int]
    id: str
    view: LeadView
    reveal: _field_mask_pb2.FieldMask
    def __init__(self, id: _Optional[str] = ..., view: _Optional[_Union[LeadView, str]] = ..., reveal: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class GetLeadResponse(_message.Message):
    __slots__ = ("lead",)
    LEAD_FIELD_NUMBER: _ClassVar[int]
    lead: Lead
    def __init__(self, lead: _Optional[_Union[Lead, _Mapping]] = ...) -> None: ...

class UpdateStatusRequest(_message.Message):
    __slots__ = ("id", "status", "reason", "expected_version")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: LeadStatus
    reason: str
    expected_version: int
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[LeadStatus, str]] = ..., reason: _Optional[str] = ..., expected_version: _Optional[int] = ...) -> None: ...

class UpdateStatusResponse(_message.Message):
    __slots__ = ("lead",)
    LEAD_FIELD_NUMBER: _ClassVar[int]
    lead: Lead
    def __init__(self, lead: _Optional[_Union[Lead, _Mapping]] = ...) -> None: ...

class UpdateLeadRequest(_message.Message):
    __slots__ = ("lead", "update_mask", "expected_version", "reason", "phone_region")
    LEAD_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PHONE_REGION_FIELD_NUMBER: _ClassVar[int]
    lead: Lead
    update_mask: _field_mask_pb2.FieldMask
    expected_version: int
    reason: str
    phone_region: str
    def __init__(self, lead: _Optional[_Union[Lead, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., expected_version: _Optional[int] = ..., reason: _Optional[str] = ..., phone_region: _Optional[str] = ...) -> None: ...

class UpdateLeadResponse(_message.Message):
    __slots__ = ("lead",)
    LEAD_FIELD_NUMBER: _ClassVar[int]
    lead: Lead
    def __init__(self, lead: _Optional[_Union[Lead, _Mapping]] = ...) -> None: ...

class GetLeadByConversationRequest(_message.Message):
    __slots__ = ("conversation_id", "view", "reveal")
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    REVEAL_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    view: LeadView
    reveal: _field_mask_pb2.FieldMask
    def __init__(self, conversation_id: _Optional[str] = ..., view: _Optional[_Union[LeadView, str]] = ..., reveal: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class GetLeadByConversationResponse(_message.Message):
    __slots__ = ("lead", "other_lead_ids")
    LEAD_FIELD_NUMBER: _ClassVar[int]
    OTHER_LEAD_IDS_FIELD_NUMBER: _ClassVar[int]
    lead: Lead
    other_lead_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lead: _Optional[_Union[Lead, _Mapping]] = ..., other_lead_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ListLeadsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "statuses", "created_after", "created_before", "assignee", "interested_policy", "conversation_id", "phone", "nid", "view", "reference", "email", "name_prefix", "updated_after", "updated_before", "unassigned", "created_by", "source", "order_by", "reveal")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AFTER_FIELD_NUMBER: _ClassVar[int]
    CREATED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    ASSIGNEE_FIELD_NUMBER: _ClassVar[int]
    INTERESTED_POLICY_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    PHONE_FIELD_NUMBER: _ClassVar[int]
    NID_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    EMAIL_FIELD_NUMBER: _ClassVar[int]
    NAME_PREFIX_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AFTER_FIELD_NUMBER: _ClassVar[int]
    UPDATED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    UNASSIGNED_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    REVEAL_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    statuses: _containers.RepeatedScalarFieldContainer[LeadStatus]
    created_after: _timestamp_pb2.Timestamp
    created_before: _timestamp_pb2.Timestamp
    assignee: str
    interested_policy: str
    conversation_id: str
    phone: str
    nid: str
    view: LeadView
    reference: str
    email: str
    name_prefix: str
    updated_after: _timestamp_pb2.Timestamp
    updated_before: _timestamp_pb2.Timestamp
    unassigned: bool
    created_by: str
    source: str
    order_by: LeadOrder
    reveal: _field_mask_pb2.FieldMask
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., statuses: _Optional[_Iterable[_Union[LeadStatus, str]]] = ..., created_after: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., created_before: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., assignee: _Optional[str] = ..., interested_policy: _Optional[str] = ..., conversation_id: _Optional[str] = ..., phone: _Optional[str] = ..., nid: _Optional[str] = ..., view: _Optional[_Union[LeadView, str]] = ..., reference: _Optional[str] = ..., email: _Optional[str] = ..., name_prefix: _Optional[str] = ..., updated_after: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., updated_before: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., unassigned: bool = ..., created_by: _Optional[str] = ..., source: _Optional[str] = ..., order_by: _Optional[_Union[LeadOrder, str]] = ..., reveal: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class ListLeadsResponse(_message.Message):
    __slots__ = ("leads", "next_page_token")
    LEADS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    leads: _containers.RepeatedCompositeFieldContainer[Lead]
    next_page_token: str
    def __init__(self, leads: _Optional[_Iterable[_Union[Lead, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SummarizeLeadsRequest(_message.Message):
    __slots__ = ("created_after", "created_before", "group_by", "time_zone")
    CREATED_AFTER_FIELD_NUMBER: _ClassVar[int]
    CREATED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    created_after: _timestamp_pb2.Timestamp
    created_before: _timestamp_pb2.Timestamp
    group_by: LeadGroup
    time_zone: str
    def __init__(self, created_after: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., created_before: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., group_by: _Optional[_Union[LeadGroup, str]] = ..., time_zone: _Optional[str] = ...) -> None: ...

class LeadCount(_message.Message):
    __slots__ = ("key", "count", "is_other")
    KEY_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    IS_OTHER_FIELD_NUMBER: _ClassVar[int]
    key: str
    count: int
    is_other: bool
    def __init__(self, key: _Optional[str] = ..., count: _Optional[int] = ..., is_other: bool = ...) -> None: ...

class SummarizeLeadsResponse(_message.Message):
    __slots__ = ("groups", "total")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[LeadCount]
    total: int
    def __init__(self, groups: _Optional[_Iterable[_Union[LeadCount, _Mapping]]] = ..., total: _Optional[int] = ...) -> None: ...

class ListStatusChangesRequest(_message.Message):
    __slots__ = ("lead_id",)
    LEAD_ID_FIELD_NUMBER: _ClassVar[int]
    lead_id: str
    def __init__(self, lead_id: _Optional[str] = ...) -> None: ...

class StatusChange(_message.Message):
    __slots__ = ("from_status", "to_status", "actor", "reason", "changed_at", "version")
    FROM_STATUS_FIELD_NUMBER: _ClassVar[int]
    TO_STATUS_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    from_status: LeadStatus
    to_status: LeadStatus
    actor: str
    reason: str
    changed_at: _timestamp_pb2.Timestamp
    version: int
    def __init__(self, from_status: _Optional[_Union[LeadStatus, str]] = ..., to_status: _Optional[_Union[LeadStatus, str]] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., changed_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...

class ListStatusChangesResponse(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[StatusChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[StatusChange, _Mapping]]] = ...) -> None: ...

class ListAssignmentsRequest(_message.Message):
    __slots__ = ("lead_id",)
    LEAD_ID_FIELD_NUMBER: _ClassVar[int]
    lead_id: str
    def __init__(self, lead_id: _Optional[str] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("from_assignee", "to_assignee", "actor", "reason", "changed_at", "version")
    FROM_ASSIGNEE_FIELD_NUMBER: _ClassVar[int]
    TO_ASSIGNEE_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    from_assignee: str
    to_assignee: str
    actor: str
    reason: str
    changed_at: _timestamp_pb2.Timestamp
    version: int
    def __init__(self, from_assignee: _Optional[str] = ..., to_assignee: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., changed_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...

class ListAssignmentsResponse(_message.Message):
    __slots__ = ("assignments",)
    ASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    assignments: _containers.RepeatedCompositeFieldContainer[Assignment]
    def __init__(self, assignments: _Optional[_Iterable[_Union[Assignment, _Mapping]]] = ...) -> None: ...

class LeadEvent(_message.Message):
    __slots__ = ("id", "type", "lead_id", "version", "fields", "from_status", "to_status", "from_assignee", "to_assignee", "actor", "reason", "at")
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    LEAD_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    FROM_STATUS_FIELD_NUMBER: _ClassVar[int]
    TO_STATUS_FIELD_NUMBER: _ClassVar[int]
    FROM_ASSIGNEE_FIELD_NUMBER: _ClassVar[int]
    TO_ASSIGNEE_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    type: LeadEventType
    lead_id: str
    version: int
    fields: _containers.RepeatedScalarFieldContainer[str]
    from_status: LeadStatus
    to_status: LeadStatus
    from_assignee: str
    to_assignee: str
    actor: str
    reason: str
    at: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., type: _Optional[_Union[LeadEventType, str]] = ..., lead_id: _Optional[str] = ..., version: _Optional[int] = ..., fields: _Optional[_Iterable[str]] = ..., from_status: _Optional[_Union[LeadStatus, str]] = ..., to_status: _Optional[_Union[LeadStatus, str]] = ..., from_assignee: _Optional[str] = ..., to_assignee: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListLeadEventsRequest(_message.Message):
    __slots__ = ("lead_id", "page_size", "page_token", "newest_first", "include_accesses")
    LEAD_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIRST_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_ACCESSES_FIELD_NUMBER: _ClassVar[int]
    lead_id: str
    page_size: int
    page_token: str
    newest_first: bool
    include_accesses: bool
    def __init__(self, lead_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., newest_first: bool = ..., include_accesses: bool = ...) -> None: ...

class ListLeadEventsResponse(_message.Message):
    __slots__ = ("events", "next_page_token")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[LeadEvent]
    next_page_token: str
    def __init__(self, events: _Optional[_Iterable[_Union[LeadEvent, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListResubmissionsRequest(_message.Message):
    __slots__ = ("lead_id", "view", "page_size", "page_token", "reveal")
    LEAD_ID_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    REVEAL_FIELD_NUMBER: _ClassVar[int]
    lead_id: str
    view: LeadView
    page_size: int
    page_token: str
    reveal: _field_mask_pb2.FieldMask
    def __init__(self, lead_id: _Optional[str] = ..., view: _Optional[_Union[LeadView, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., reveal: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class Resubmission(_message.Message):
    __slots__ = ("lead", "submitted_at", "actor", "verified")
    LEAD_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    lead: Lead
    submitted_at: _timestamp_pb2.Timestamp
    actor: str
    verified: bool
    def __init__(self, lead: _Optional[_Union[Lead, _Mapping]] = ..., submitted_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., actor: _Optional[str] = ..., verified: bool = ...) -> None: ...

class ListResubmissionsResponse(_message.Message):
    __slots__ = ("resubmissions", "next_page_token")
    RESUBMISSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    resubmissions: _containers.RepeatedCompositeFieldContainer[Resubmission]
    next_page_token: str
    def __init__(self, resubmissions: _Optional[_Iterable[_Union[Resubmission, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class AssignLeadRequest(_message.Message):
    __slots__ = ("id", "assignee", "reason", "expected_version")
    ID_FIELD_NUMBER: _ClassVar[int]
    ASSIGNEE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    id: str
    assignee: str
    reason: str
    expected_version: int
    def __init__(self, id: _Optional[str] = ..., assignee: _Optional[str] = ..., reason: _Optional[str] = ..., expected_version: _Optional[int] = ...) -> None: ...

class AssignLeadResponse(_message.Message):
    __slots__ = ("lead",)
    LEAD_FIELD_NUMBER: _ClassVar[int]
    lead: Lead
    def __init__(self, lead: _Optional[_Union[Lead, _Mapping]] = ...) -> None: ...

class EraseLeadRequest(_message.Message):
    __slots__ = ("id", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    reason: str
    def __init__(self, id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class EraseLeadResponse(_message.Message):
    __slots__ = ("kept_ids",)
    KEPT_IDS_FIELD_NUMBER: _ClassVar[int]
    kept_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kept_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Conflict(_message.Message):
    __slots__ = ("id", "submission", "leads", "met_fields", "accepted_at", "found_at", "resolution", "resolved_by", "resolved_at", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    SUBMISSION_FIELD_NUMBER: _ClassVar[int]
    LEADS_FIELD_NUMBER: _ClassVar[int]
    MET_FIELDS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_FIELD_NUMBER: _ClassVar[int]
    FOUND_AT_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_BY_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_AT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    submission: Lead
    leads: _containers.RepeatedCompositeFieldContainer[Lead]
    met_fields: _containers.RepeatedScalarFieldContainer[str]
    accepted_at: _timestamp_pb2.Timestamp
    found_at: _timestamp_pb2.Timestamp
    resolution: ConflictResolution
    resolved_by: str
    resolved_at: _timestamp_pb2.Timestamp
    reason: str
    def __init__(self, id: _Optional[str] = ..., submission: _Optional[_Union[Lead, _Mapping]] = ..., leads: _Optional[_Iterable[_Union[Lead, _Mapping]]] = ..., met_fields: _Optional[_Iterable[str]] = ..., accepted_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., found_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., resolution: _Optional[_Union[ConflictResolution, str]] = ..., resolved_by: _Optional[str] = ..., resolved_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class ListConflictsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "include_resolved", "view", "reveal")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_RESOLVED_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    REVEAL_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    include_resolved: bool
    view: LeadView
    reveal: _field_mask_pb2.FieldMask
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., include_resolved: bool = ..., view: _Optional[_Union[LeadView, str]] = ..., reveal: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class ListConflictsResponse(_message.Message):
    __slots__ = ("conflicts", "next_page_token")
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    conflicts: _containers.RepeatedCompositeFieldContainer[Conflict]
    next_page_token: str
    def __init__(self, conflicts: _Optional[_Iterable[_Union[Conflict, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ResolveConflictRequest(_message.Message):
    __slots__ = ("id", "resolution", "lead_id", "reason", "view", "reveal")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    LEAD_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    REVEAL_FIELD_NUMBER: _ClassVar[int]
    id: str
    resolution: ConflictResolution
    lead_id: str
    reason: str
    view: LeadView
    reveal: _field_mask_pb2.FieldMask
    def __init__(self, id: _Optional[str] = ..., resolution: _Optional[_Union[ConflictResolution, str]] = ..., lead_id: _Optional[str] = ..., reason: _Optional[str] = ..., view: _Optional[_Union[LeadView, str]] = ..., reveal: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class ResolveConflictResponse(_message.Message):
    __slots__ = ("lead",)
    LEAD_FIELD_NUMBER: _ClassVar[int]
    lead: Lead
    def __init__(self, lead: _Optional[_Union[Lead, _Mapping]] = ...) -> None: ...

class Access(_message.Message):
    __slots__ = ("lead_id", "subject", "operation", "fields", "reason", "request_id", "recorded_at", "chain_id", "number")
    LEAD_ID_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RECORDED_AT_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    lead_id: str
    subject: str
    operation: str
    fields: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    request_id: str
    recorded_at: _timestamp_pb2.Timestamp
    chain_id: str
    number: int
    def __init__(self, lead_id: _Optional[str] = ..., subject: _Optional[str] = ..., operation: _Optional[str] = ..., fields: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., request_id: _Optional[str] = ..., recorded_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., chain_id: _Optional[str] = ..., number: _Optional[int] = ...) -> None: ...

class ListAccessesRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "lead_id", "subject", "recorded_after", "recorded_before")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LEAD_ID_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    RECORDED_AFTER_FIELD_NUMBER: _ClassVar[int]
    RECORDED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    lead_id: str
    subject: str
    recorded_after: _timestamp_pb2.Timestamp
    recorded_before: _timestamp_pb2.Timestamp
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., lead_id: _Optional[str] = ..., subject: _Optional[str] = ..., recorded_after: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., recorded_before: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListAccessesResponse(_message.Message):
    __slots__ = ("accesses", "next_page_token")
    ACCESSES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    accesses: _containers.RepeatedCompositeFieldContainer[Access]
    next_page_token: str
    def __init__(self, accesses: _Optional[_Iterable[_Union[Access, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class PersonRef(_message.Message):
    __slots__ = ("kind", "id")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    kind: PersonMatchKind
    id: str
    def __init__(self, kind: _Optional[_Union[PersonMatchKind, str]] = ..., id: _Optional[str] = ...) -> None: ...

class FindPersonRequest(_message.Message):
    __slots__ = ("phone", "nid", "email", "page_token")
    PHONE_FIELD_NUMBER: _ClassVar[int]
    NID_FIELD_NUMBER: _ClassVar[int]
    EMAIL_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    phone: str
    nid: str
    email: str
    page_token: str
    def __init__(self, phone: _Optional[str] = ..., nid: _Optional[str] = ..., email: _Optional[str] = ..., page_token: _Optional[str] = ...) -> None: ...

class PersonMatch(_message.Message):
    __slots__ = ("kind", "id", "lead_id", "matched_fields", "lead")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    LEAD_ID_FIELD_NUMBER: _ClassVar[int]
    MATCHED_FIELDS_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    kind: PersonMatchKind
    id: str
    lead_id: str
    matched_fields: _containers.RepeatedScalarFieldContainer[str]
    lead: Lead
    def __init__(self, kind: _Optional[_Union[PersonMatchKind, str]] = ..., id: _Optional[str] = ..., lead_id: _Optional[str] = ..., matched_fields: _Optional[_Iterable[str]] = ..., lead: _Optional[_Union[Lead, _Mapping]] = ...) -> None: ...

class FindPersonResponse(_message.Message):
    __slots__ = ("matches", "next_page_token", "unanswered_replicas")
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    UNANSWERED_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    matches: _containers.RepeatedCompositeFieldContainer[PersonMatch]
    next_page_token: str
    unanswered_replicas: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, matches: _Optional[_Iterable[_Union[PersonMatch, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., unanswered_replicas: _Optional[_Iterable[str]] = ...) -> None: ...

class ExportPersonRequest(_message.Message):
    __slots__ = ("refs", "page_token")
    REFS_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    refs: _containers.RepeatedCompositeFieldContainer[PersonRef]
    page_token: str
    def __init__(self, refs: _Optional[_Iterable[_Union[PersonRef, _Mapping]]] = ..., page_token: _Optional[str] = ...) -> None: ...

class PersonRecord(_message.Message):
    __slots__ = ("ref", "part", "id", "lead", "resubmission", "conflict", "event", "lead_id")
    REF_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    RESUBMISSION_FIELD_NUMBER: _ClassVar[int]
    CONFLICT_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    LEAD_ID_FIELD_NUMBER: _ClassVar[int]
    ref: PersonRef
    part: PersonPart
    id: str
    lead: Lead
    resubmission: Resubmission
    conflict: Conflict
    event: LeadEvent
    lead_id: str
    def __init__(self, ref: _Optional[_Union[PersonRef, _Mapping]] = ..., part: _Optional[_Union[PersonPart, str]] = ..., id: _Optional[str] = ..., lead: _Optional[_Union[Lead, _Mapping]] = ..., resubmission: _Optional[_Union[Resubmission, _Mapping]] = ..., conflict: _Optional[_Union[Conflict, _Mapping]] = ..., event: _Optional[_Union[LeadEvent, _Mapping]] = ..., lead_id: _Optional[str] = ...) -> None: ...

class ExportPersonResponse(_message.Message):
    __slots__ = ("records", "next_page_token", "exported_by", "exported_at", "not_found", "unanswered_replicas")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPORTED_BY_FIELD_NUMBER: _ClassVar[int]
    EXPORTED_AT_FIELD_NUMBER: _ClassVar[int]
    NOT_FOUND_FIELD_NUMBER: _ClassVar[int]
    UNANSWERED_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[PersonRecord]
    next_page_token: str
    exported_by: str
    exported_at: _timestamp_pb2.Timestamp
    not_found: _containers.RepeatedCompositeFieldContainer[PersonRef]
    unanswered_replicas: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, records: _Optional[_Iterable[_Union[PersonRecord, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., exported_by: _Optional[str] = ..., exported_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., not_found: _Optional[_Iterable[_Union[PersonRef, _Mapping]]] = ..., unanswered_replicas: _Optional[_Iterable[str]] = ...) -> None: ...

class ErasePersonRequest(_message.Message):
    __slots__ = ("refs", "reason")
    REFS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    refs: _containers.RepeatedCompositeFieldContainer[PersonRef]
    reason: str
    def __init__(self, refs: _Optional[_Iterable[_Union[PersonRef, _Mapping]]] = ..., reason: _Optional[str] = ...) -> None: ...

class ErasePersonResponse(_message.Message):
    __slots__ = ("erased", "unanswered_replicas", "not_found", "kept_ids")
    ERASED_FIELD_NUMBER: _ClassVar[int]
    UNANSWERED_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    NOT_FOUND_FIELD_NUMBER: _ClassVar[int]
    KEPT_IDS_FIELD_NUMBER: _ClassVar[int]
    erased: _containers.RepeatedCompositeFieldContainer[PersonRef]
    unanswered_replicas: _containers.RepeatedScalarFieldContainer[str]
    not_found: _containers.RepeatedCompositeFieldContainer[PersonRef]
    kept_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, erased: _Optional[_Iterable[_Union[PersonRef, _Mapping]]] = ..., unanswered_replicas: _Optional[_Iterable[str]] = ..., not_found: _Optional[_Iterable[_Union[PersonRef, _Mapping]]] = ..., kept_ids: _Optional[_Iterable[str]] = ...) -> None: ...
